"""The client against answers of every kind, and against the real server."""

import asyncio
import json
import subprocess
import sys

import pytest

from clients.client import Client
from clients.errors import (
    ApiError,
    OverloadedError,
    ProtocolError,
    ServerDownError,
    StreamCutError,
    TimedOutError,
)
from clients.events import Accepted, Event, Finished, Progress, Token, Usage
from deployments.server import Server
from deployments.text_sources import toy_text
from medha_actors.config import MedhaConfig, ModelLoadingConfig, StreamConfig
from medha_actors.messages import ProgressEvent
from tests.clients.conftest import streamed, whole
from tests.fakes import FakeEngine, finished, saying, token
from tests.serve.conftest import listening

HELLO = (
    b": accepted\n\n: progress 10/20 tokens, 1.5 s left\n\n"
    b'data: {"choices":[{"index":0,"text":"He\\u00e9"}]}\n\n'
    b': keep-alive\n\ndata: {"choices":[{"index":0,"text":"y","finish_reason":"length"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,'
    b'"medha":{"ttft_ms":1.0}}}\n\n'
    b"data: [DONE]\n\n"
)


async def collect(events) -> list[Event]:
    return [event async for event in events]


def timeless(events: list[Event]) -> list[Event]:
    """The same events without their times."""
    kept = []
    for event in events:
        if isinstance(event, Token):
            assert event.at_s >= 0
            kept.append(Token(event.text, 0.0, event.choice, event.logprobs))
        elif isinstance(event, Finished):
            kept.append(Finished(event.reason, 0.0, event.choice))
        else:
            kept.append(event)
    return kept


EXPECTED = [
    Accepted(None, 0.5, None),
    Progress(10, 20, 1.5),
    Token("Heé", 0.0),
    Token("y", 0.0),
    Finished("length", 0.0),
    Usage(3, 2, {"ttft_ms": 1.0}),
]


async def test_stream_in_any_pieces(serving) -> None:
    answer = streamed(HELLO)
    for size in (1, 7, len(answer)):
        _, client = await serving(
            *(answer[i : i + size] for i in range(0, len(answer), size))
        )
        assert timeless(await collect(client.complete("x"))) == EXPECTED


async def test_what_is_sent(serving) -> None:
    raw, client = await serving(streamed(HELLO), api_key="secret")
    options = {
        "max_tokens": 5,
        "ttft_s": 0.25,
        "tpot_s": 0.02,
        "timeout_s": 9,
        "temperature": None,
        "medha": {"x": 1},
    }
    await collect(client.chat("hi", **options))
    head, body = raw.requests[0].split(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions ")
    for line in (
        b"x-llm-d-slo-ttft-ms: 250",
        b"x-llm-d-slo-tpot-ms: 20",
        b"x-medha-timeout-seconds: 9",
        b"authorization: Bearer secret",
        b"content-type: application/json",
    ):
        assert line in head
    assert json.loads(body) == {
        "messages": [{"role": "user", "content": "hi"}],
        "model": "toy",
        "max_tokens": 5,
        "medha": {"x": 1},
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (
            whole(400, b'{"error":{"message":"no","type":"t","param":"n","code":"c"}}'),
            ApiError,
        ),
        (
            whole(429, b'{"error":{"message":"full"}}', b"retry-after: 3"),
            OverloadedError,
        ),
        (whole(408, b'{"error":{"message":"late"}}'), TimedOutError),
        (whole(500, b"<html>oops</html>"), ApiError),
        (whole(404, b'{"detail":"Not Found"}'), ApiError),
        (whole(200, b"not json"), ProtocolError),
        (whole(200, b'{"choices": 5}'), ProtocolError),
        (streamed(b"data: nonsense\n\n"), ProtocolError),
        (
            streamed(
                b'data: {"error":{"message":"stage died","type":"server_error"}}\n\n'
                b"data: [DONE]\n\n"
            ),
            ApiError,
        ),
        (
            streamed(b'data: {"error":{"message":"late","type":"timeout_error"}}\n\n'),
            TimedOutError,
        ),
        (streamed(HELLO.replace(b"data: [DONE]\n\n", b"")), StreamCutError),
        (
            whole(200, b"{}").replace(b"content-length: 2", b"content-length: 9"),
            StreamCutError,
        ),
        (b"HTTP/1.1 rubbish\r\n\r\n", StreamCutError),
        (b"", StreamCutError),
    ],
)
async def test_errors_are_typed(serving, answer: bytes, error: type[Exception]) -> None:
    _, client = await serving(answer)
    with pytest.raises(error) as caught:
        await collect(client.complete("x"))
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


async def test_error_fields(serving) -> None:
    _, client = await serving(
        whole(
            429,
            b'{"error":{"message":"full","type":"t","param":"n","code":"c"}}',
            b"retry-after: 3",
        )
    )
    with pytest.raises(OverloadedError) as caught:
        await collect(client.complete("x"))
    error = caught.value
    assert (error.message, error.status, error.kind, error.param, error.code) == (
        "full",
        429,
        "t",
        "n",
        "c",
    )
    assert error.retry_after_s == 3.0


async def test_a_silent_server(serving) -> None:
    _, client = await serving(
        streamed(b": accepted\n\n"), hang=True, idle_timeout_s=0.05
    )
    with pytest.raises(StreamCutError, match="silent"):
        await collect(client.complete("x"))


async def test_leaving_early_closes_the_connection(serving) -> None:
    raw, client = await serving(streamed(HELLO[:150]), hang=True)
    events = client.complete("x")
    async for event in events:
        if isinstance(event, Token):
            break
    await events.aclose()
    await raw.gone.wait()


async def test_no_server() -> None:
    for url, model, message in [
        (
            "http://127.0.0.1:9/v1/",
            None,
            "no server at http://127.0.0.1:9: Connection refused",
        ),
        ("ftp://nowhere", "m", "not an HTTP URL: ftp://nowhere"),
        ("http://[1", "m", "not an HTTP URL: http://[1"),
    ]:
        async with Client(url, model=model) as client:
            with pytest.raises(ServerDownError) as caught:
                await collect(client.complete("x"))
            assert str(caught.value) == message


@pytest.mark.parametrize(
    "answer", [b"[]", b"{}", b"x", b'{"data":[]}', b'{"data":[{}]}']
)
async def test_servers_without_models(serving, answer: bytes) -> None:
    _, client = await serving(whole(200, answer))
    client.model = None
    with pytest.raises(ProtocolError):
        await collect(client.complete("x"))


async def test_against_the_real_server() -> None:
    async def slowly(request):
        yield ProgressEvent(request.id, 1, 2, 3.0)
        for _ in range(5):
            await asyncio.sleep(0)
        async for event in saying("é€".encode())(request):
            yield event

    config = MedhaConfig(
        model_loading_config=ModelLoadingConfig(model_id="toy", model_source="random"),
        stream=StreamConfig(progress_s=0.0, first_comment_s=0.0),
    )
    engine = FakeEngine(slowly)
    async with (
        listening(Server(config, engine, toy_text(300, 999)).asgi()) as url,
        Client(url) as client,
    ):
        assert await client.models() == ["toy"]
        assert await client.tokenize("hi") == [104, 105]
        for medha in (None, {"progress": True}):
            for events in (
                client.chat("hi", medha=medha),
                client.complete([1, 2], max_tokens=50, medha=medha),
            ):
                seen = await collect(events)
                assert isinstance(seen[0], Accepted)
                assert (seen[0].ttft_deadline_s, seen[0].predicted_ttft_s) == (
                    2.5,
                    1.25,
                )
                assert seen[1] == Progress(1, 2, 3.0)
                tokens = [event for event in seen if isinstance(event, Token)]
                assert [event.text for event in tokens] == ["", "é", "", "", "€"]
                assert isinstance(seen[-1], Usage)
                assert seen[-1].completion_tokens == 5
        seen = await collect(client.complete("x", stream=False, logprobs=1))
        assert [type(event) for event in seen] == [Accepted, Token, Finished, Usage]
        assert seen[1].text == "é€"
        assert seen[1].logprobs["token_logprobs"] == [-0.25] * 5
        with pytest.raises(ApiError) as caught:
            await collect(client.complete("x", temperature=-1))
        assert caught.value.param == "temperature"

        async def late(request):
            yield token(request, 0, 65)
            yield finished(request, 1, "timeout", "too late")

        engine.script = late
        with pytest.raises(TimedOutError):
            await collect(client.complete("x"))


def test_imports_are_light() -> None:
    code = (
        "import sys, clients.__main__; "
        "print([m for m in ('ray', 'torch', 'transformers') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )
