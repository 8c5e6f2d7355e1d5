"""Work is bounded before it starts, long texts take turns, and room that large bodies took is
free again."""

import asyncio
import threading

import httpx
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Encoding, Tokenizer

from deployments.bodies import LARGE_BYTES, check_values
from deployments.text import LONG_CHARS, Text, TooManyTokensError
from deployments.text_sources import load_text, toy_text
from deployments.turns import Owner, Turns
from medha_actors.config import LimitsConfig, ModelLoadingConfig
from medha_actors.errors import RequestError

TOY = toy_text(300)


@pytest.fixture(scope="module")
def smollm() -> Text:
    return load_text(ModelLoadingConfig())


async def test_pieces_of_two_owners_alternate() -> None:
    turns = Turns("test")
    first = Owner()
    second = Owner()
    order: list[str] = []
    gate = threading.Event()
    held = asyncio.ensure_future(turns.run(Owner(), 1, gate.wait))
    waiting = [
        asyncio.ensure_future(
            turns.run(owner, 10, lambda name=name: order.append(name))
        )
        for owner, name in [
            (first, "a"),
            (first, "a"),
            (first, "a"),
            (second, "b"),
            (second, "b"),
        ]
    ]
    await asyncio.sleep(0)  # all have asked for a turn
    gate.set()
    await asyncio.gather(held, *waiting)
    assert "".join(order) == "ababa"


async def test_a_newcomer_waits_for_one_piece_only() -> None:
    turns = Turns("test")
    order: list[str] = []
    large = Owner()
    newcomers: list[asyncio.Future[None]] = []

    def piece(number: int) -> None:
        order.append(f"large{number}")

    async def go() -> None:
        for number in range(10):
            await turns.run(large, 100, lambda number=number: piece(number))
            if number == 4:
                small = turns.run(Owner(), 5, lambda: order.append("small"))
                newcomers.append(asyncio.ensure_future(small))

    await go()
    await asyncio.gather(*newcomers)
    assert order.index("small") <= order.index("large6")


async def test_a_turn_that_fails_or_is_given_up_does_not_stop_the_others() -> None:
    turns = Turns("test")
    gate = threading.Event()
    held = asyncio.ensure_future(turns.run(Owner(), 1, gate.wait))
    ran: list[int] = []
    given_up = asyncio.ensure_future(turns.run(Owner(), 1, lambda: ran.append(1)))
    wrong = asyncio.ensure_future(turns.run(Owner(), 1, lambda: 1 // 0))
    right = asyncio.ensure_future(turns.run(Owner(), 1, lambda: 7))
    await asyncio.sleep(0)
    given_up.cancel()
    gate.set()
    with pytest.raises(ZeroDivisionError):
        await wrong
    assert await right == 7
    assert await held
    assert ran == []


@pytest.mark.parametrize(
    "unit", ["x", " ", "the quick brown fox ", "1", "漢", "😀", "aé"]
)
async def test_a_text_that_fits_is_never_refused(smollm: Text, unit: str) -> None:
    text = unit * (200_000 // len(unit))
    tokens = await smollm.encode(text, add_special_tokens=False)
    assert (
        await smollm.encode(text, add_special_tokens=False, limit=len(tokens)) == tokens
    )


@settings(max_examples=20)
@given(st.text(min_size=1, max_size=30), st.integers(LONG_CHARS + 1, 3 * LONG_CHARS))
def test_what_is_refused_is_too_long(unit: str, chars: int) -> None:
    text = (unit * (1 + chars // len(unit)))[:chars]
    tokens = len(text.encode())  # of the toy: one for each byte
    assert len(asyncio.run(TOY.encode(text, limit=tokens))) == tokens
    with pytest.raises(TooManyTokensError) as caught:
        asyncio.run(TOY.encode(text, limit=tokens // 4))
    assert tokens // 4 < caught.value.at_least <= tokens


class Watched:
    """A tokenizer that counts what it reads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.chars = 0

    def encode_batch_fast(
        self, texts: list[str], add_special_tokens: bool
    ) -> list[Encoding]:
        self.chars += sum([len(text) for text in texts])
        return self.tokenizer.encode_batch_fast(
            texts, add_special_tokens=add_special_tokens
        )


@pytest.mark.parametrize(
    ("text", "most"),
    [("some words " * 5_000_000, 0), ("1" * 1_000_000, 100_000)],
    ids=["refused by its length", "refused by its first pieces"],
)
async def test_a_huge_text_costs_as_much_as_its_limit(
    text: str, most: int, smollm: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(smollm.tokenizer)
    monkeypatch.setattr(smollm, "tokenizer", watched)
    with pytest.raises(TooManyTokensError):
        await smollm.encode(text, limit=8192)
    assert min(1, most) <= watched.chars <= most


@pytest.mark.parametrize(
    ("body", "right"),
    [
        ({"prompt": "a," * 500}, True),
        ({"prompt": [1] * 500}, False),
        ({"prompt": [[1] * 250, [2] * 250]}, False),
        ({"messages": [{"role": "user", "content": "x"}] * 300}, False),
        ({"prompt": "a," * 500, "stop": ["x"] * 500}, False),
        ({f"key{i}": i for i in range(500)}, False),
    ],
)
def test_values_are_counted_before_they_are_built(body: dict, right: bool) -> None:
    data = msgspec.json.encode(body)
    check_values(data, 1000)
    if right:
        check_values(data, 100)
    else:
        with pytest.raises(RequestError):
            check_values(data, 100)


@pytest.mark.parametrize("data", [b"{" + b"," * 5000, b'{"x": "\xff' + b"," * 5000])
def test_what_is_not_json_is_refused_by_the_count(data: bytes) -> None:
    with pytest.raises(RequestError):
        check_values(data, 100)


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        ("/v1/completions", {"prompt": "x" * 200_000}, "context_length_exceeded", "prompt"),
        (
            "/v1/completions",
            {"prompt": [1] * 5000, "echo": True},
            "context_length_exceeded",
            "prompt",
        ),
        (
            "/v1/completions",
            {"prompt": ["ok", "x" * 200_000], "echo": True},
            "context_length_exceeded",
            "prompt[1]",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x" * 200_000}]},
            "context_length_exceeded",
            "messages",
        ),
        (
            "/tokenize",
            {"messages": [{"role": "user", "content": "x" * 200_000}]},
            "context_length_exceeded",
            "messages",
        ),
        ("/tokenize", {"prompt": "x" * 200_000}, "too_many_tokens", "prompt"),
        ("/detokenize", {"tokens": [65] * 140_000}, "too_many_tokens", "tokens"),
        ("/tokenize", {"prompt": ["x"] * 1_100_000}, "too_many_values", None),
    ],
)  # fmt: skip
async def test_what_is_too_long_is_refused(start, path, body, code, param) -> None:
    service = await start()
    response = await service.post(path, body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param)
    assert service.engine.requests == []
    assert service.server.bodies.large_bytes == 0


async def test_tokenize_answers_beyond_the_context(start) -> None:
    service = await start()
    response = await service.post("/tokenize", {"prompt": "x" * 100_000})
    assert response.json()["count"] == 100_000
    assert response.json()["max_model_len"] == 4096


async def test_large_bodies_share_their_room(start) -> None:
    """While one body of 1.5 MB is being sent, a second one has no room; afterwards it has."""
    service = await start(limits=LimitsConfig(max_large_bodies_bytes=2 * LARGE_BYTES))
    body = b'{"prompt": "' + b"x" * (3 * LARGE_BYTES // 2) + b'"}'
    sent = asyncio.Event()
    go_on = asyncio.Event()

    async def slowly():
        yield body[:-1]
        sent.set()
        await go_on.wait()
        yield body[-1:]

    first = asyncio.ensure_future(service.http.post("/tokenize", content=slowly()))
    await sent.wait()
    refused: httpx.Response = await service.http.post("/tokenize", content=body)
    while refused.status_code != 429:  # the first one's bytes are on their way
        refused = await service.http.post("/tokenize", content=body)
    assert refused.json()["error"]["code"] == "large_bodies"
    assert refused.headers["retry-after"]
    small = await service.post("/tokenize", {"prompt": "hi"})
    assert small.status_code == 200
    go_on.set()
    assert (await first).status_code == 400  # too many tokens
    assert (await service.http.post("/tokenize", content=body)).status_code == 400
    assert service.server.bodies.large_bytes == 0
