"""Prompts have the exact number of tokens, share what their plan says they share, and are found for
any tokenizer."""

import json
import random

import pytest

from loadgen.errors import LoadgenError
from loadgen.records import PlannedRequest
from loadgen.send.alphabet import WORDS, file_counter, single_token_words
from loadgen.send.prompts import PromptMaker, ids_alphabet, text_alphabet

IDS = ids_alphabet(tuple(range(100, 900)))


def planned(tokens, index=0, **more):
    return PlannedRequest(index=index, prompt_tokens=tokens, output_tokens=1, **more)


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 100, 32_768, 100_001])
def test_ids_have_the_exact_length(tokens):
    made = json.loads(PromptMaker(IDS, 0).make(planned(tokens)))
    assert len(made) == tokens
    assert set(made) <= set(range(100, 900))


@pytest.mark.parametrize("tokens", [4, 100, 40_000])
def test_words_have_the_exact_length_less_what_the_server_adds(tokens):
    made = json.loads(
        PromptMaker(text_alphabet(WORDS, overhead=3), 0).make(planned(tokens))
    )
    assert len(made.split()) == tokens - 3
    assert made.startswith(" ")


def test_prompts_differ_at_their_start_and_repeat_for_the_same_seed():
    maker = PromptMaker(IDS, 0)
    starts = {
        tuple(json.loads(maker.make(planned(50, index)))[:16]) for index in range(500)
    }
    assert len(starts) == 500
    assert PromptMaker(IDS, 0).make(planned(500)) == maker.make(planned(500))
    assert PromptMaker(IDS, 1).make(planned(500)) != maker.make(planned(500))


def test_equal_blocks_are_equal_tokens_and_unequal_ones_are_not():
    maker = PromptMaker(IDS, 0)
    one = json.loads(maker.make(planned(150, 0, blocks=(1, 2, 3), block_tokens=51)))
    two = json.loads(maker.make(planned(120, 1, blocks=(1, 2, 4), block_tokens=51)))
    longer = json.loads(maker.make(planned(153, 2, blocks=(1, 2, 3), block_tokens=51)))
    assert (len(one), len(two)) == (150, 120)
    assert one[:102] == two[:102]
    assert one[102:118] != two[102:118]
    assert longer[:150] == one  # a piece of a block is its start


def test_tokens_beyond_the_blocks_are_the_requests_own():
    maker = PromptMaker(IDS, 0)
    one, two = (
        json.loads(maker.make(planned(100, index, blocks=(1,), block_tokens=51)))
        for index in (0, 1)
    )
    assert one[:51] == two[:51]
    assert one[51:] != two[51:]


def test_a_prompt_shorter_than_the_servers_own_tokens():
    with pytest.raises(
        LoadgenError, match="shortest prompt this server can be sent has 4"
    ):
        PromptMaker(text_alphabet(WORDS, overhead=3), 0).make(planned(3))


def counter(split, overhead=1, calls=None):
    """A tokenizer that knows all words but those in `split`, which are two tokens."""

    async def count(text):
        if calls is not None:
            calls.append(text)
        return overhead + sum(2 if word in split else 1 for word in text.split())

    return count


async def test_all_words_known_takes_few_calls():
    calls = []
    assert await single_token_words(counter((), 7, calls)) == (WORDS, 7)
    assert len(calls) <= 4


async def test_split_words_are_left_out():
    split = set(random.Random(0).sample(WORDS, 40))
    words, overhead = await single_token_words(counter(split))
    assert overhead == 1
    assert set(words) == set(WORDS) - split


async def test_a_tokenizer_without_words():
    async def characters(text):
        return len(text)

    with pytest.raises(LoadgenError, match="no single-token words"):
        await single_token_words(characters)


async def test_local_tokenizer(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(
        WordLevel(
            {word: index for index, word in enumerate(WORDS)} | {"[UNK]": 999},
            unk_token="[UNK]",
        )
    )
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert await single_token_words(file_counter(tmp_path)) == (WORDS, 0)
    with pytest.raises(LoadgenError, match="there is no"):
        file_counter(tmp_path / "other.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(LoadgenError, match=r"bad\.json"):
        file_counter(tmp_path / "bad.json")
