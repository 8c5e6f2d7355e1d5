"""Edge: what Serve may see of a request, and what becomes of Serve's own errors."""

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse

from deployments.edge import clean, middlewares
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
