"""Text: tokens to text one at a time, stop strings wherever they are split, templates, and the loop
that stays free."""

import asyncio
import codecs
import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from deployments.chat_template import ChatTemplate
from deployments.detokenize import StopStrings, TokenTable, WindowDetokenizer
from deployments.histories import ContentPart, Message
from deployments.text import INLINE_CHARS, LONG_CHARS, Text
from deployments.text_sources import directory_text, load_text, toy_text
from medha_actors.config import ModelLoadingConfig, RandomWeights
from medha_actors.errors import ConfigError, ModelError, RequestError
from medha_actors.files.spelling import byte_alphabet

TOY = toy_text(300)


def sentencepiece() -> Tokenizer:
    """A tiny Llama-2-like vocabulary: words, a marker for spaces, and all bytes."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        "\u2581hello",
        "wörld",
        "a",
    ]
    tokenizer = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in words[:3]])
    return tokenizer


def incremental(table: TokenTable, ids: list[int]) -> list[str]:
    detokenizer = table.detokenizer()
    return [*map(detokenizer.push, ids), detokenizer.flush()]


@settings(max_examples=200)
@given(st.lists(st.integers(0, 299), max_size=40))
def test_incremental_equals_full_decode_byte_level(ids: list[int]) -> None:
    assert "".join(incremental(TOY.table, ids)) == TOY.tokenizer.decode(
        ids, skip_special_tokens=True
    )


@settings(max_examples=100)
@given(st.text(max_size=30))
def test_only_whole_characters_are_shown(text: str) -> None:
    shown = incremental(TOY.table, list(text.encode()))
    assert "".join(shown) == text
    assert shown[-1] == ""
    decoder = codecs.getincrementaldecoder("utf-8")()
    assert shown[:-1] == [decoder.decode(bytes([byte])) for byte in text.encode()]


@settings(max_examples=100)
@given(st.lists(st.sampled_from(["é", "hello", "\u2581", "😀", "a"]), max_size=12))
def test_incremental_equals_full_decode_byte_fallback(words: list[str]) -> None:
    tokenizer = sentencepiece()
    ids: list[int] = []
    for word in words:
        known = tokenizer.token_to_id("\u2581hello" if word == "hello" else word)
        ids += [known] if known is not None else [3 + byte for byte in word.encode()]
    assert "".join(incremental(TokenTable(tokenizer), ids)) == tokenizer.decode(ids)


def test_an_unfinished_character_ends_as_one_replacement() -> None:
    assert incremental(TOY.table, [0x61, 0xE2, 0x82]) == ["a", "", "", "\ufffd"]


def test_ids_without_a_token_have_no_text() -> None:
    assert incremental(TOY.table, [100_000, 65]) == ["", "A", ""]


@settings(max_examples=50)
@given(st.text("aé€😀 ", max_size=12))
def test_other_tokenizers_go_through_a_window(text: str) -> None:
    detokenizer = WindowDetokenizer(TOY.tokenizer)
    assert "".join([*map(detokenizer.push, text.encode()), detokenizer.flush()]) == text


def test_plain_decoders_use_the_window() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    table = TokenTable(tokenizer)
    assert not table.exact
    assert "".join(incremental(table, [0, 1, 1])) == tokenizer.decode([0, 1, 1])


def cut(text: str, stops: list[str], include: bool, counts_from: int = 0) -> str:
    """The definition: read character by character; the first stop string that is complete, after so
    many characters that do not count, ends the text."""
    for end in range(counts_from + 1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end if include else end - len(max(found, key=len))]
    return text


@settings(max_examples=300)
@given(
    text=st.text("ab\n", max_size=16),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    cuts=st.sets(st.integers(0, 16)),
    include=st.booleans(),
    counts_from=st.integers(0, 16),
)
def test_stop_strings_at_any_split(
    text: str, stops: list[str], cuts: set[int], include: bool, counts_from: int
) -> None:
    watch = StopStrings(stops, include)
    edges = sorted(
        {0, len(text), *(cut for cut in {*cuts, counts_from} if cut < len(text))}
    )
    shown = "".join(
        watch.push(text[a:b], counts=b > counts_from) for a, b in pairwise(edges)
    )
    assert shown + watch.flush() == cut(text, stops, include, counts_from)
    ended = cut(text, stops, True, counts_from)
    counted = any(ended.endswith(stop) for stop in stops) and len(ended) > counts_from
    assert (watch.matched is not None) == counted


def test_only_what_could_become_a_stop_string_is_held_back() -> None:
    watch = StopStrings(["END"])
    assert [watch.push(piece) for piece in ("xE", "N", "Ex", "N")] == [
        "x",
        "",
        "ENEx",
        "N",
    ]
    assert watch.flush() == ""


@pytest.mark.parametrize("chars", [10, INLINE_CHARS + 1, LONG_CHARS + 1])
async def test_encode(chars: int) -> None:
    assert await TOY.encode("é" * (chars // 2)) == list(b"\xc3\xa9") * (chars // 2)


async def test_a_long_prompt_does_not_hold_the_loop() -> None:
    """While 2 MB are tokenised in a thread, the loop turns, and a short prompt does not wait for
    it."""
    long = asyncio.ensure_future(TOY.encode("the quick brown fox " * 100_000))
    turns = 0
    while not long.done() and turns < 10:
        await TOY.encode("x" * (INLINE_CHARS + 1))
        turns += 1
    assert turns == 10
    assert len(await long) == 2_000_000


def test_fewest_tokens_is_a_lower_bound() -> None:
    assert TOY.fewest_tokens("x" * 1000) <= 1000


def test_chat_template() -> None:
    template = ChatTemplate(
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% generation "
        "%}!{% endgeneration %}{% endfor %}{% if add_generation_prompt %}>{% endif %}{{ '' if "
        "thinking is not defined else thinking }}",
        {"bos_token": "<s>"},
    )
    messages = [Message(role="developer", content=[ContentPart(text=" x ")])]
    assert template.render(messages, True, {}) == "<s>[system]x!>"
    assert (
        template.render(messages, False, {"thinking": False, "messages": 3})
        == "<s>[system]x!False"
    )


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no system role') }}",
        "{{ messages[9].role.x }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ 1/0 }}",
    ],
)
def test_a_template_that_fails_is_a_request_error(source: str) -> None:
    with pytest.raises(RequestError) as caught:
        ChatTemplate(source, {}).render([Message(role="user", content="x")], True, {})
    assert caught.value.param == "messages"


def test_content_is_data_not_template() -> None:
    text = toy_text(300)
    assert (
        text.template.render([Message(role="user", content="{{ 7*7 }}")], False, {})
        == "user: {{ 7*7 }}\n"
    )


def test_broken_template_and_missing_template() -> None:
    with pytest.raises(ModelError):
        ChatTemplate("{% if %}", {})
    with pytest.raises(RequestError):
        _ = Text(toy_text(300).tokenizer).template


def test_sources(tmp_path) -> None:
    assert (
        load_text(
            ModelLoadingConfig(
                model_source="random", random=RandomWeights(vocabulary=400)
            )
        ).vocabulary
        == 400
    )
    with pytest.raises(ConfigError):
        load_text(
            ModelLoadingConfig(
                model_source="random", random=RandomWeights(vocabulary=100)
            )
        )
    with pytest.raises(ModelError):
        load_text(ModelLoadingConfig(model_source=str(tmp_path / "no.gguf")))
    (tmp_path / "bad.gguf").write_bytes(b"not a model")
    with pytest.raises(ModelError):
        load_text(ModelLoadingConfig(model_source=str(tmp_path / "bad.gguf")))


def test_directory(tmp_path) -> None:
    TOY.tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings_ = {
        "eos_token": {"content": "<eos>"},
        "chat_template": [{"name": "default", "template": "{{ eos_token }}"}],
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings_))
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 777}))
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [5, 256]})
    )
    text = directory_text(tmp_path)
    assert (text.eos_token_ids, text.context_tokens, text.vocabulary) == (
        (5, 256),
        777,
        300,
    )
    assert (
        text.template.render([Message(role="user", content="x")], True, {}) == "<eos>"
    )
    (tmp_path / "chat_template.jinja").write_text("J")
    assert (
        directory_text(tmp_path).template.render(
            [Message(role="user", content="x")], True, {}
        )
        == "J"
    )


def test_alphabet_is_a_bijection() -> None:
    assert sorted(byte_alphabet().values()) == list(range(256))
