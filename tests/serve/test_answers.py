"""What an answer says of its tokens, over real HTTP: where they start, what stopped them, and which
were the likeliest."""

from itertools import accumulate, chain
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments import offsets
from deployments.detokenize import TokenTable
from deployments.text_sources import toy_text
from medha_actors.messages import PromptLogprobsEvent, TokenEvent
from tests.fakes import finished, saying, token
from tests.serve.test_generation import frames
from tests.serve.test_text import sentencepiece

EOS = 256
TOY = toy_text(300)


async def choice_of(
    service: Any, stream: bool = False, **fields: Any
) -> dict[str, Any]:
    """One completion's choice; of a stream, its parts put together."""
    body = {"prompt": "x", "max_tokens": 50, "stream": stream, **fields}
    response = await service.post("/v1/completions", body)
    assert response.status_code == 200, response.text
    if not stream:
        return response.json()["choices"][0]
    parts = [frame["choices"][0] for frame in frames(response.text)[:-1]]
    whole = {**parts[-1], "text": "".join(part["text"] for part in parts)}
    if whole["logprobs"] is not None:
        names = whole["logprobs"]
        whole["logprobs"] = {
            name: list(chain.from_iterable(part["logprobs"][name] for part in parts))
            for name in names
        }
    return whole


STARTS: list[tuple[list[int], str, list[int]]] = [
    (list("😀 b".encode()), "😀 b", [0, 0, 0, 0, 1, 2]),
    ([97, EOS, 98], "ab", [0, 1, 1]),  # a special token has no text
    # half a character, which ends where "a" begins
    ([0xE2, 97, 98], "\ufffdab", [0, 1, 2]),
    ([0xE2, 0x82, EOS, 0xAC, 97], "€a", [0, 0, 0, 0, 1]),
    ([97, 0xF4, 0x90, 98], "a\ufffd\ufffdb", [0, 1, 2, 3]),
    ([97, 400, 98], "a<400>b", [0, 1, 6]),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("ids", "text", "starts"), STARTS)
async def test_an_offset_is_where_the_token_starts(
    start, ids, text, starts, stream
) -> None:
    service = await start(saying(ids))
    choice = await choice_of(service, stream, logprobs=0, ignore_eos=True)
    assert choice["text"] == text
    assert choice["logprobs"]["text_offset"] == starts


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("prompt", "ids", "starts"),
    [
        ("é😀 b", None, [0, 0, 1, 1, 1, 1, 2, 3]),
        # ids are echoed with their special tokens
        ([97, EOS, 98], [97, EOS, 98], [0, 1, 6]),
        ([0xE2, 97], [0xE2, 97], [0, 1]),
    ],
)
async def test_offsets_under_echo(start, prompt, ids, starts, stream) -> None:
    ids = ids or list(prompt.encode())

    async def script(request):
        yield PromptLogprobsEvent(request.id, 0, ((-1.0, ()),) * (len(ids) - 1))
        for index, byte in enumerate("é!".encode()):
            yield token(request, index, byte, logprobs=True)
        yield finished(request, 3)

    service = await start(script)
    choice = await choice_of(service, stream, prompt=prompt, echo=True, logprobs=0)
    echoed = len(choice["text"]) - 2
    assert choice["text"][echoed:] == "é!"
    assert choice["logprobs"]["text_offset"] == [*starts, echoed, echoed, echoed + 1]


@settings(max_examples=200)
@given(st.text("a é😀\n", max_size=12))
def test_a_prompt_is_walked_as_it_is_generated(text: str) -> None:
    ids = list(text.encode())
    detokenizer = TOY.table.detokenizer()
    generated = []
    for token_id in ids:
        generated.append(detokenizer.start_of(token_id))
        detokenizer.push(token_id)
    assert offsets.starts(ids, text, TOY.table) == generated
    characters = [len(char.encode()) for char in text]
    firsts = [0, *accumulate(characters)][: len(characters)]
    assert [generated[first] for first in firsts] == list(range(len(text)))


def test_tokens_that_are_not_in_the_text_as_they_are() -> None:
    """A beginning that the tokenizer adds, a space that it puts before the first word, and a
    normalizer's work."""
    tokenizer = sentencepiece()
    table = TokenTable(tokenizer)

    def starts(words: list[str], text: str) -> list[int]:
        return offsets.starts(
            [tokenizer.token_to_id(word) for word in words], text, table
        )

    hello = "\u2581hello"
    assert starts(["<s>", hello, hello, "a"], "hello helloa") == [0, 0, 5, 11]
    assert starts([hello, "</s>", "a"], "hello</s>a") == [0, 5, 9]
    assert starts(["wörld", hello], "WÖRLD hello") == [0, 5]
    assert starts([hello, hello], "hello") == [0, 5]


@pytest.mark.parametrize(
    ("minimum", "text", "reason"),
    [
        (0, "a", "stop"),
        (4, "a", "stop"),  # begun before, completed after
        (5, "aSTOPb", "stop"),  # complete with the last token that does not count
        (10, "aSTOPbSTOP", "length"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_counts_where_it_ends(
    start, minimum, text, reason, stream
) -> None:
    service = await start(saying(b"aSTOPbSTOP"))
    choice = await choice_of(service, stream, stop=["STOP"], min_tokens=minimum)
    assert (choice["text"], choice["finish_reason"]) == (text, reason)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("include", [False, True])
async def test_a_stop_string_that_is_a_special_token(
    start, include: bool, stream: bool
) -> None:
    """Whether the engine ends at it (it is the end of sequence, too) or not."""
    expected = ("ab<eos>" if include else "ab", "stop", "<eos>")
    fields = {"stop": ["zzz", "<eos>"], "include_stop_str_in_output": include}
    for script, ignore_eos in (
        (saying(b"ab", EOS), False),
        (saying([97, 98, EOS, 99]), True),
    ):
        service = await start(script)
        choice = await choice_of(service, stream, ignore_eos=ignore_eos, **fields)
        assert (
            choice["text"],
            choice["finish_reason"],
            choice["stop_reason"],
        ) == expected


async def test_a_special_stop_ends_what_was_begun(start) -> None:
    service = await start(saying([97, ord("S"), 0xE2, EOS, 99]))
    choice = await choice_of(service, stop=["S!", "<eos>"], ignore_eos=True)
    assert (choice["text"], choice["stop_reason"]) == ("aS\ufffd", "<eos>")


async def test_a_special_stop_waits_for_min_tokens(start) -> None:
    service = await start(saying([EOS, 97, EOS, 98, EOS, 99]))
    choice = await choice_of(service, stop="<eos>", ignore_eos=True, min_tokens=4)
    assert (choice["text"], choice["stop_reason"]) == ("ab", "<eos>")


async def test_the_likeliest_token_is_the_largest_value_whatever_tokens_are_called(
    start,
) -> None:
    """Harnesses say that a token was the greedy one if it EQUALS the largest value. Ids without a
    token are all called the same."""

    async def script(request):
        nameless = ((400_000, -0.5), (97, -1.0), (400_001, -3.0))
        yield PromptLogprobsEvent(request.id, 0, ((-0.5, nameless), (-3.0, nameless)))
        top = ((97, -0.1), (98, -0.1), (400_001, -7.0))
        yield TokenEvent(request.id, 0, 98, request.arrived_at + 1, -0.1, top)
        yield TokenEvent(request.id, 1, 99, request.arrived_at + 2, -5.0, top)
        yield finished(request, 2)

    service = await start(script)
    service.server.admission.vocabulary = 2**20
    prompt = [97, 400_000, 400_001]
    logprobs = (await choice_of(service, prompt=prompt, echo=True, logprobs=3))[
        "logprobs"
    ]
    pairs = list(
        zip(logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
    )[1:]
    assert [value == max(top.values()) for value, top in pairs] == [
        True,
        False,
        True,
        False,
    ]
    assert pairs[-1][1] == {"a": -0.1, "b": -0.1, "": -7.0, "c": -5.0}
