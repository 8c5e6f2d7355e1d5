"""The client on connections that are cut: its output is whole, and it says what happened."""

import asyncio
import json
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest

from clients.client import Client
from clients.errors import ApiError, ProtocolError, ServerDownError, StreamCutError
from clients.events import Event, Finished, Resumed, Token, Usage
from clients.resuming import Resuming
from deployments.server import Server
from deployments.text_sources import toy_text
from medha_actors.config import MedhaConfig, ModelLoadingConfig
from tests.clients.conftest import streamed
from tests.cutting import CuttingProxy, cutting
from tests.fakes import FakeEngine, saying
from tests.serve.conftest import listening

TEXT = "Grüße, 😀 world!"
CONFIG = MedhaConfig(
    model_loading_config=ModelLoadingConfig(model_id="toy", model_source="random")
)
ASKED = {"max_tokens": 60, "stop": ["ld!"]}


TOY = toy_text(300, 999)


def app_of(engine: FakeEngine):
    return Server(CONFIG, engine, TOY).asgi()


@asynccontextmanager
async def behind(*cuts: int):
    """A proxy that cuts, in front of a server that says TEXT."""
    engine = FakeEngine(saying(TEXT.encode(), 256))
    async with listening(app_of(engine)) as url, cutting(url, cuts) as proxy:
        yield proxy


def client_of(proxy: CuttingProxy, **options) -> Client:
    return Client(proxy.url, model="toy", resume_wait_s=0.001, **options)


async def ask(proxy: CuttingProxy, **options) -> list[Event]:
    async with client_of(proxy, **options) as client:
        return [event async for event in client.complete("hi", **ASKED)]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Token))


async def answer_bytes(url: str) -> bytes:
    """The bytes of a whole answer on the wire."""
    body = {"prompt": "hi", "model": "toy", "stream": True, **ASKED}
    body["stream_options"] = {"include_usage": True}
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", int(url.rpartition(":")[2])
    )
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n"
    )
    writer.write(
        f"{head}x-medha-event-ids: 1\r\nconnection: close\r\n\r\n".encode() + data
    )
    answer = await reader.read()
    writer.close()
    return answer


async def test_cut_after_any_byte() -> None:
    async with listening(app_of(FakeEngine(saying(TEXT.encode(), 256)))) as url:
        wire = await answer_bytes(url)
        known_from = (
            wire.index(b":0\n\n") + 9
        )  # by then the client knows what to ask for
        for cut in range(known_from, len(wire) - 60, 37):
            async with cutting(url, [cut]) as proxy:
                events = await ask(proxy)
            check_whole(events)


def check_whole(events: list[Event]) -> None:
    assert text_of(events) == "Grüße, 😀 wor"
    assert [event.reason for event in events if isinstance(event, Finished)] == ["stop"]
    usage = events[-1]
    assert isinstance(usage, Usage)
    assert (usage.completion_tokens, usage.resumed) == (20, 1)
    [resumed] = [event for event in events if isinstance(event, Resumed)]
    assert resumed.times == 1


async def test_cut_again_and_again() -> None:
    async with behind(700, 900, 700, 0, 400, 900) as proxy:
        events = await ask(proxy)
    assert text_of(events) == "Grüße, 😀 wor"
    resumed = [event for event in events if isinstance(event, Resumed)]
    assert [event.times for event in resumed] == list(range(1, len(resumed) + 1))
    assert len(resumed) >= 3
    tokens = [event.tokens for event in resumed]
    assert tokens == sorted(tokens)


async def test_given_up_after_so_many_times() -> None:
    async with behind(*[600] * 50) as proxy:
        with pytest.raises(StreamCutError, match="resumed 3 times, then given up"):
            await ask(proxy, resumes=3)
        assert proxy.connections == 4


async def test_switched_off() -> None:
    async with behind(700) as proxy:
        with pytest.raises(StreamCutError):
            await ask(proxy, resumes=0)
        assert proxy.connections == 1


async def test_a_server_that_restarts_is_waited_for() -> None:
    async with behind(700) as proxy:
        loop = asyncio.get_running_loop()
        back: list[asyncio.Task[None]] = []

        def away() -> None:
            proxy.refuse()
            loop.call_later(
                0.05, lambda: back.append(asyncio.ensure_future(proxy.listen()))
            )

        proxy.on_cut = away
        assert text_of(await ask(proxy)) == "Grüße, 😀 wor"
        await back[0]


async def test_a_server_that_stays_away_is_given_up() -> None:
    async with behind(700) as proxy:
        proxy.on_cut = proxy.refuse
        with pytest.raises(StreamCutError, match="Connection refused; resumed 0 times"):
            await ask(proxy, resume_for_s=0.05)


async def test_an_answer_that_is_forgotten() -> None:
    """The server does not know it: its own words, and no third try."""
    engine = FakeEngine(saying(TEXT.encode()))
    async with listening(app_of(engine)) as url, cutting(url, [700]) as proxy:
        engine.now = -61.0
        proxy.on_cut = lambda: setattr(engine, "now", 0.0)
        with pytest.raises(ApiError) as caught:
            await ask(proxy)
        assert caught.value.code == "resume_not_found"
        assert proxy.connections == 2


async def test_an_error_frame_is_no_cut(serving) -> None:
    raw, client = await serving(
        streamed(
            b'id: a:1\ndata: {"error":{"message":"died","type":"server_error"}}\n\n'
        )
    )
    with pytest.raises(ApiError, match="died"):
        [event async for event in client.complete("x")]
    assert len(raw.requests) == 1


async def test_what_is_sent_again(serving) -> None:
    part = streamed(b'id: a:0\n\nid: a:1\ndata: {"choices":[{"text":"x"}]}\n\n')
    raw, client = await serving(part, resumes=1, resume_wait_s=0.0)
    with pytest.raises(StreamCutError):
        [event async for event in client.complete("x", seed=3)]
    first, second = [request.split(b"\r\n\r\n") for request in raw.requests]
    assert first[1] == second[1]
    assert b"x-medha-event-ids: 1" in first[0]
    assert b"x-medha-resume" not in first[0]
    assert b"x-medha-resume: a:1" in second[0]


async def test_the_command_line_says_so() -> None:
    async with behind(700) as proxy:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "clients", "hi", "--base-url", proxy.url, "--model", "toy",
            "--completion", "--max-tokens", "60",
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
    assert (process.returncode, out.decode()) == (0, TEXT + "\n")
    assert "[the connection was cut; resumed after " in err.decode()
    assert ", cut and resumed: 1" in err.decode()


def test_patience() -> None:
    """Pauses double up to two seconds, and begin anew when the answer has moved on."""
    resuming = Resuming(10, 60.0, 0.1)
    cut = StreamCutError("cut")
    with pytest.raises(StreamCutError, match=r"^cut$"):
        resuming.pause_s(cut, 0.0)  # no place is known
    resuming.place = "a:1"
    bounds = [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    for error, bound in zip([cut, *[ServerDownError("down")] * 6], bounds, strict=True):
        assert bound / 2 <= resuming.pause_s(error, 1.0) <= bound
    with pytest.raises(StreamCutError, match="given up"):
        resuming.pause_s(cut, 61.0)
    resuming.place = "a:2"
    assert resuming.pause_s(cut, 61.0) <= 0.1
    for status in (502, 503, 504):
        resuming.pause_s(ApiError("away", status=status), 62.0)
    unknown = ApiError("no", status=404, kind="not_found_error")
    for error in (unknown, ApiError("died", status=None), ProtocolError("?")):
        with pytest.raises(type(error)) as caught:
            resuming.pause_s(error, 62.0)
        assert caught.value is error


@pytest.mark.parametrize(("place", "tokens"), [("a:b:7", 7), ("a:end", None)])
def test_places(place: str, tokens: int | None) -> None:
    resuming = Resuming(1, 1.0, 0.1)
    assert resuming.headers == {}
    resuming.place = place
    assert resuming.tokens == tokens
    assert resuming.headers == {"x-medha-resume": place}


def test_a_proxy_that_knows_no_routes_yet_is_asked_again() -> None:
    resuming = Resuming(limit=3, patience_s=60.0, first_wait_s=0.1)
    resuming.place = "cmpl-1:5"
    assert resuming.pause_s(ApiError("Path not found", status=404), 0.0) <= 0.1
    ours = ApiError("nothing to resume", status=404, kind="not_found_error")
    with pytest.raises(ApiError):
        resuming.pause_s(ours, 0.0)
