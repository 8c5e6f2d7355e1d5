"""Edge: what Serve may see of a request, and what becomes of Serve's own errors."""

import asyncio
import contextlib

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from deployments.edge import Edge, clean, middlewares
from tests.serve.conftest import listening


def edged(app):
    [middleware] = middlewares()
    return middleware.cls(app, *middleware.args, **middleware.kwargs)


def test_headers() -> None:
    headers = [
        (b"x-request-timeout-seconds", b"5"),
        (b"x-request-id", b"a\xe9b"),
        (b"x-request-id", b"first"),
        (b"x-request-id", b"second"),
        (b"accept", b"a"),
        (b"accept", b"b"),
        (b"x-note", "é".encode()),
    ]
    assert clean(headers) == [
        (b"x-medha-timeout-seconds", b"5"),
        (b"x-request-id", b"first"),
        (b"accept", b"a"),
        (b"accept", b"b"),
        (b"x-note", "é".encode()),
    ]


def test_our_own_timeout_header_wins_where_it_stands_first() -> None:
    headers = [(b"x-medha-timeout-seconds", b"1"), (b"x-request-timeout-seconds", b"2")]
    assert clean(headers) == headers[:1]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (404, "not_found_error"),
        (503, "service_unavailable_error"),
        (500, "server_error"),
    ],
)
async def test_plain_errors_become_error_objects(status: int, kind: str) -> None:
    plain = PlainTextResponse("no such thing", status, {"x-request-id": "7"})
    async with listening(edged(plain)) as url, httpx.AsyncClient(base_url=url) as http:
        response = await http.get("/x")
        assert response.status_code == status
        assert response.json()["error"]["message"] == "no such thing"
        assert response.json()["error"]["type"] == kind
        assert response.headers["x-request-id"] == "7"
        health = await http.get("/-/healthz")
        assert health.text == "no such thing"


async def test_answers_pass_unchanged() -> None:
    for answer in (PlainTextResponse("fine"), JSONResponse({"error": "mine"}, 400)):
        async with (
            listening(edged(answer)) as url,
            httpx.AsyncClient(base_url=url) as http,
        ):
            response = await http.get("/x")
            assert (response.content, response.status_code) == (
                answer.body,
                answer.status_code,
            )


async def test_an_exception_becomes_an_error_object(caplog) -> None:
    async def broken(scope, receive, send):
        b"\xe9".decode()

    async with listening(edged(broken)) as url, httpx.AsyncClient(base_url=url) as http:
        response = await http.get("/x")
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "UnicodeDecodeError" in caplog.text


def knowing(routes: str, status: int = 200):
    """Serve's proxy, as it answers where it has no application for a path."""

    async def proxy(scope, receive, send):
        text = f"Path '{scope['path']}' not found. Ping http://.../-/routes for available routes."
        answer = PlainTextResponse(text, 404)
        if scope["path"] == "/-/routes":
            answer = PlainTextResponse(routes, status)
        await answer(scope, receive, send)

    return edged(proxy)


@pytest.mark.parametrize(
    ("path", "before", "after"),
    [
        ("/v1/completions", 503, 503),
        ("/prefix/v1/chat/completions", 503, 503),
        ("/v1/responses", 503, 503),
        ("/v1/messages", 529, 529),  # Anthropic's word for it
        ("/x", 503, 404),
    ],
)
async def test_whoever_comes_before_an_application_is_asked_to_come_back(
    path: str, before: int, after: int
) -> None:
    """Before there is any application, and when there is another one."""
    for app, status in (
        (knowing("Route table is not populated yet.", 503), before),
        (knowing("{}"), before),
        (knowing('{"/another":"another"}'), after),
    ):
        async with listening(app) as url, httpx.AsyncClient(base_url=url) as http:
            response = await http.post(path)
            assert response.status_code == status
            assert ("retry-after" in response.headers) == (status != 404)
            assert response.json()["error"]["message"]


async def test_whoever_waits_for_an_application_that_failed_is_told_so() -> None:
    """Nobody else: neither one whose answer has begun, nor while there is hope."""
    looks = 0
    began, failed = asyncio.Event(), asyncio.Event()

    async def is_hopeless() -> bool:
        nonlocal looks
        looks += 1
        failed.set()
        return True

    async def serve(scope, receive, send):
        if scope["path"] == "/held":
            await asyncio.Event().wait()
        if (
            scope["path"] == "/silent"
        ):  # as Serve's proxy is where a request is cancelled
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        began.set()
        await failed.wait()
        await send({"type": "http.response.body", "body": b"2"})

    app = Edge(serve, is_hopeless)
    async with listening(app) as url, httpx.AsyncClient(base_url=url) as http:
        stream = asyncio.create_task(http.get("/stream"))
        await began.wait()
        requests = [http.get(path, timeout=30) for path in ("/held", "/silent")]
        for held in await asyncio.gather(*requests):
            assert held.status_code == 503
            assert held.headers["retry-after"] == "10"
            assert "did not start" in held.json()["error"]["message"]
        assert (await stream).text == "12"
    assert looks == 1
