"""Comments come only into a silence, and never cost a client a token."""

import asyncio
import json

import pytest

from deployments import sse
from deployments.silence import Silence, wants_comments
from medha_actors.config import StreamConfig
from medha_actors.messages import ProgressEvent, Request
from tests.fakes import finished, token

BODY = {"prompt": "hi", "max_tokens": 50, "stream": True}
STREAM = StreamConfig(first_comment_s=1.0, keep_alive_s=10.0, progress_s=2.0)


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_first_comment_comes_after_a_second_and_others_after_ten(
    clock: Clock,
) -> None:
    silence = Silence(STREAM, True, clock)
    assert (silence.wait_s(), silence.comment()) == (1.0, b"")
    clock.now += 1.0
    assert silence.comment() == sse.KEEP_ALIVE
    assert (silence.wait_s(), silence.comment()) == (10.0, b"")
    clock.now += 10.0
    assert silence.comment() == sse.KEEP_ALIVE
    assert silence.ended() == sse.EMPTY_COMMENT
    clock.now += 9.0
    assert (silence.wait_s(), silence.comment()) == (1.0, b"")


def test_progress_is_told_in_a_silence_and_not_too_often(clock: Clock) -> None:
    silence = Silence(STREAM, True, clock)
    silence.progressed("one")
    silence.progressed("two")
    assert (silence.wait_s(), silence.comment()) == (1.0, b"")
    clock.now += 1.0
    assert silence.comment() == b": two\n\n"
    silence.progressed("three")
    assert (silence.wait_s(), silence.comment()) == (2.0, b"")
    clock.now += 2.0
    assert silence.comment() == b": three\n\n"
    assert silence.wait_s() == 10.0


def test_an_event_ends_the_silence_and_old_news_is_dropped(clock: Clock) -> None:
    silence = Silence(STREAM, True, clock)
    silence.progressed("old")
    clock.now += 0.5
    assert silence.ended() == b""
    clock.now += 5.0
    assert (silence.wait_s(), silence.comment()) == (5.0, b"")


@pytest.mark.parametrize(
    ("stream", "wanted"), [(StreamConfig(comments=False), True), (STREAM, False)]
)
def test_comments_can_be_switched_off(
    clock: Clock, stream: StreamConfig, wanted: bool
) -> None:
    silence = Silence(stream, wanted, clock)
    silence.progressed("news")
    clock.now += 1000.0
    assert silence.wait_s() == stream.keep_alive_s
    assert silence.comment() == silence.ended() == b""


def test_the_header_switches_them_off() -> None:
    assert wants_comments({})
    assert wants_comments({"x-medha-comments": "1"})
    for value in ("0", " Off ", "false", "no"):
        assert not wants_comments({"x-medha-comments": value})


def stripping_reader(chunks: list[bytes]) -> list[str]:
    """The texts that a client finds which strips every chunk before it looks for events, and takes
    an event at a chunk's end as complete when its JSON is."""
    waiting = ""
    texts: list[str] = []
    for chunk in chunks:
        *events, waiting = (waiting + chunk.strip().decode()).split("\n\n")
        if waiting.startswith("data: ") and waiting.endswith(("}", "]")):
            events.append(waiting)
            waiting = ""
        found = [
            event.removeprefix("data: ")
            for event in events
            if event.startswith("data: {")
        ]
        texts += [json.loads(event)["choices"][0]["text"] for event in found]
    return texts


async def test_a_client_that_strips_chunks_loses_nothing(start) -> None:
    """As vllm's benchmark reads: a comment alone in a chunk must not swallow what follows."""
    go = asyncio.Event()

    async def script(request: Request):
        yield ProgressEvent(request.id, 512, 4096, 12.3)
        await go.wait()
        for index, letter in enumerate(b"abc"):
            yield token(request, index, letter)
        yield finished(request, 3)

    service = await start(
        script, stream=StreamConfig(first_comment_s=0.0, keep_alive_s=0.05)
    )
    chunks: list[bytes] = []
    async with service.http.stream("POST", "/v1/completions", json=BODY) as response:
        async for chunk in response.aiter_raw():
            chunks.append(chunk)
            if b": keep-alive" in chunk:
                go.set()
    assert any(b": progress 512/4096" in chunk for chunk in chunks)
    assert b":\n\ndata: " in b"".join(chunks)
    assert "".join(stripping_reader(chunks)) == "abc"


async def test_a_header_keeps_a_stream_free_of_comments(start) -> None:
    go = asyncio.Event()

    async def script(request: Request):
        yield ProgressEvent(request.id, 512, 4096, 12.3)
        await go.wait()
        yield finished(request, 0)

    service = await start(
        script, stream=StreamConfig(first_comment_s=0.0, keep_alive_s=0.05)
    )
    headers = {"x-medha-comments": "0"}
    silent = asyncio.ensure_future(
        service.post("/v1/completions", BODY, headers=headers)
    )
    async with service.http.stream("POST", "/v1/completions", json=BODY) as response:
        async for line in response.aiter_lines():
            if (
                line == ": keep-alive"
            ):  # the other stream has been as long silent by now
                go.set()
    assert (await silent).text.startswith("data: ")
