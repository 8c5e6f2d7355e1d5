"""Streams that are slow, silent, cut or failing."""

import asyncio
import json

import httpx
import pytest

from deployments.outbox import Addition, Outbox
from medha_actors.config import StreamConfig
from medha_actors.errors import EngineError
from medha_actors.messages import FinishedEvent, ProgressEvent, Request
from tests.fakes import finished, saying, token

BODY = {"prompt": "hi", "max_tokens": 50, "stream": True}


async def forever(request: Request):
    yield token(request, 0, ord("a"))
    await asyncio.Event().wait()


async def test_headers_come_before_any_token_and_no_comment_with_quick_ones(
    start,
) -> None:
    go = asyncio.Event()

    async def script(request: Request):
        await go.wait()
        yield finished(request, 0)

    service = await start(script)
    async with service.http.stream("POST", "/v1/completions", json=BODY) as response:
        assert response.headers["x-medha-ttft-deadline-ms"] == "2500.0"
        go.set()
        lines = [line async for line in response.aiter_lines()]
    assert lines[-2] == "data: [DONE]"
    assert not any(line.startswith(":") for line in lines)


async def test_keep_alive_while_silent(start) -> None:
    service = await start(forever, stream=StreamConfig(keep_alive_s=0.05))
    async with service.http.stream("POST", "/v1/completions", json=BODY) as response:
        seen = [line async for line in until(response, ": keep-alive")]
    assert sum(line.startswith("data: ") for line in seen) == 1


async def until(response: httpx.Response, wanted: str):
    async for line in response.aiter_lines():
        yield line
        if line == wanted:
            return


async def test_progress_is_shown_while_it_is_news(start) -> None:
    service = await start(
        slow_progress, stream=StreamConfig(progress_s=0.0, first_comment_s=0.0)
    )
    text = (await service.post("/v1/completions", BODY)).text
    assert ": progress 512/4096 tokens, 12.3 s left\n\n" in text
    text = (
        await service.post("/v1/completions", {**BODY, "medha": {"progress": True}})
    ).text
    event = next(
        block
        for block in text.split("\n\n")
        if block.startswith("event: medha.progress\n")
    )
    data = json.loads(event.split("data: ")[1])
    assert (data["prefilled_tokens"], data["total_tokens"], data["seconds_left"]) == (
        512,
        4096,
        12.345,
    )
    assert data["choices"] == []


async def slow_progress(request: Request):
    for done in (512, 1024, 2048):
        yield ProgressEvent(request.id, done, 4096, 12.345)
        for _ in range(5):
            await asyncio.sleep(0)
    yield token(request, 0, ord("a"))
    yield finished(request, 1)


async def test_progress_is_rate_limited(start) -> None:
    service = await start(
        slow_progress, stream=StreamConfig(progress_s=60.0, first_comment_s=0.0)
    )
    assert (await service.post("/v1/completions", BODY)).text.count(": progress") == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_disconnect_cancels(start, stream: bool) -> None:
    service = await start(forever)
    if stream:
        async with service.http.stream(
            "POST", "/v1/completions", json={**BODY, "n": 2}
        ) as response:
            await anext(response.aiter_lines())  # the first token is there
    else:
        call = asyncio.ensure_future(
            service.post("/v1/completions", {**BODY, "stream": False})
        )
        await service.engine.until(lambda: bool(service.engine.requests))
        call.cancel()
    await service.engine.until_all_cancelled()


async def test_a_cancelled_server_task_cancels_the_request(start, toy) -> None:
    """What Ray Serve does when the client has gone: it cancels the task that serves the request."""
    service = await start(forever)
    sent: asyncio.Queue[dict] = asyncio.Queue()
    body = [
        {"type": "http.request", "body": json.dumps(BODY).encode(), "more_body": False}
    ]

    async def receive():
        return body.pop() if body else await asyncio.Event().wait()

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "headers": [],
        "query_string": b"",
    }
    task = asyncio.ensure_future(service.server.asgi()(scope, receive, sent.put))
    for _ in range(2):  # the start, the first token
        await sent.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await service.engine.until_all_cancelled()


@pytest.mark.parametrize(
    ("reason", "status", "kind"),
    [("timeout", 408, "timeout_error"), ("error", 500, "server_error")],
)
async def test_failures_before_and_after_the_first_byte(
    start, reason: str, status: int, kind: str
) -> None:
    async def script(request: Request):
        yield token(request, 0, ord("a"))
        yield finished(request, 1, reason, "because")

    service = await start(script)
    whole = await service.post("/v1/completions", {**BODY, "stream": False})
    assert whole.status_code == status
    assert (whole.headers.get("x-should-retry") == "false") == (reason == "timeout")
    streamed = await service.post("/v1/completions", BODY)
    assert streamed.status_code == 200
    *_, error, done = [
        line for line in streamed.text.splitlines() if line.startswith("data: ")
    ]
    assert done == "data: [DONE]"
    for answer in (whole.json(), json.loads(error.removeprefix("data: "))):
        assert (answer["error"]["message"], answer["error"]["type"]) == (
            "because",
            kind,
        )
    assert '"finish_reason":"length"' not in streamed.text


async def test_an_engine_that_breaks_is_an_error_frame(start) -> None:
    async def script(request: Request):
        yield token(request, 0, ord("a"))
        yield "nonsense"
        await asyncio.Event().wait()

    service = await start(script)
    text = (await service.post("/v1/completions", BODY)).text
    await service.engine.until_all_cancelled()
    assert '"text":"a"' in text
    assert '"type":"server_error"' in text
    assert text.endswith("data: [DONE]\n\n")


async def test_abort_is_told(start) -> None:
    async def script(request: Request):
        yield finished(request, 0, "abort")

    service = await start(script)
    answer = (await service.post("/v1/completions", {**BODY, "stream": False})).json()
    assert answer["choices"][0]["finish_reason"] == "abort"


async def test_a_reader_that_sleeps_gets_everything_merged(start) -> None:
    """Nothing is lost and no more than the bound waits, while the client does not read."""
    service = await start(
        saying([ord("x")] * 3000), stream=StreamConfig(max_buffered_events=8)
    )
    body = {**BODY, "max_tokens": 3000}
    async with service.http.stream("POST", "/v1/completions", json=body) as response:
        texts = [
            json.loads(line.removeprefix("data: "))["choices"][0]["text"]
            async for line in response.aiter_lines()
            if line.startswith("data: {")
        ]
    assert "".join(texts) == "x" * 3000
    assert max(map(len, texts)) > 1


async def test_outbox_merges_beyond_its_limit() -> None:
    outbox = Outbox(2)
    for i in range(1, 6):
        outbox.put(Addition(0, text=str(i), generated=i))
    outbox.put(Addition(1, text="b", generated=1))
    outbox.put(
        Addition(
            0,
            generated=5,
            finish_reason="length",
            ending=FinishedEvent(request_id="r", reason="length"),
        )
    )
    additions = await outbox.take(1.0)
    assert [
        (addition.index, addition.text, addition.finish_reason)
        for addition in additions
    ] == [
        (0, "1", None),
        (0, "2345", "length"),
        (1, "b", None),
    ]
    assert await outbox.take(0.001) == []


async def test_outbox_keeps_order_and_the_latest_progress() -> None:
    outbox = Outbox(10)
    outbox.put_progress(ProgressEvent("r", 1, 3, 1.0))
    outbox.put_progress(ProgressEvent("r", 2, 3, 1.0))
    assert await outbox.take(1.0) == [ProgressEvent("r", 2, 3, 1.0)]
    waiting = asyncio.ensure_future(outbox.take(10.0))
    await asyncio.sleep(0)
    error = EngineError("x")
    outbox.fail(error)
    assert await waiting == [error]
