"""Edge: what a request meets before Ray Serve does, and what an answer of Serve's own becomes.

Serve installs it around every HTTP server it starts, in proxies and in ingress replicas, where
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deployments.edge:middlewares is in the environment of the
Ray cluster (`medha-serve` sets it).

- A header value that is not UTF-8 is dropped: Serve decodes several, and fails with a bare 500.
- `x-request-timeout-seconds` gets our name: Serve would enforce it as well, without our error
  object, or in the middle of a stream.
- Of a repeated header that Serve reads, the first one counts; Serve and Starlette disagree.
- A request that a proxy holds for an application that could not be started gets 503.
- Errors that Serve writes as plain text, and exceptions, become our error object.
- A proxy that knows no application yet says 404 for whatever is asked; one that knows another
  application already does so for ours: that becomes 503, so that clients come back instead of
  giving up. (HAProxy says so by itself: deployments.haproxy.)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments import failures
from deployments.held import PATIENCE_S, Held, nobody_will_serve
from deployments.objectives import SERVE_TIMEOUT_HEADER, TIMEOUT_HEADER
from deployments.paths import OWN_ROUTES
from medha_actors.errors import MedhaError, UnavailableError

log = logging.getLogger(__name__)
Headers = list[tuple[bytes, bytes]]
IsRouted = Callable[[], Awaitable[bool]]

_SERVE_TIMEOUT: Final = SERVE_TIMEOUT_HEADER.encode()
_TIMEOUT: Final = TIMEOUT_HEADER.encode()
_ONCE: Final = frozenset(
    {_TIMEOUT, b"x-request-id", b"x-session-id", b"x-request-disconnect-disabled"}
)
_NO_SUCH_PATH: Final = "for available routes."  # how Serve's own 404 ends
_SERVES_OWN_ROUTES: Final = "/-/"  # health checks, which are plain text
_ROUTES: Final = "/-/routes"  # of them, the one that lists the applications
_HOPELESS: Final = "the application did not start; see the server's log"
_HOPELESS_S: Final = 10.0
_MOST_TEXT: Final = 2_000
_KINDS: Final = {
    400: "invalid_request_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "overloaded_error",
    503: "service_unavailable_error",
}


def middlewares() -> list[Middleware]:
    """For Serve's RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH."""
    return [Middleware(Edge)]


class Edge:
    """An ASGI application around Serve's."""

    def __init__(
        self,
        app: ASGIApp,
        is_hopeless: Callable[[], Awaitable[bool]] = nobody_will_serve,
    ) -> None:
        """`is_hopeless`: see Held."""
        self._app = app
        self._held = Held(is_hopeless)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(_SERVES_OWN_ROUTES):
            await self._app(scope, receive, send)
            return
        scope["headers"] = clean(scope["headers"])
        answer = _Answer(scope, send, partial(_is_routed, self._app, scope))
        limit = asyncio.timeout(None)
        look = asyncio.get_running_loop().call_later(
            PATIENCE_S, self._held.add, limit, answer
        )
        error: MedhaError | None = None
        try:
            async with limit:
                await self._app(scope, receive, answer)
        except Exception:
            if answer.started:
                raise
            if not limit.expired():
                log.exception(
                    "Ray Serve failed before the request reached the application"
                )
                error = MedhaError("internal error; see the server's log")
        finally:
            look.cancel()
            self._held.leave(limit)
        # Serve may say nothing of it
        if limit.expired() and not answer.started:
            error = UnavailableError(_HOPELESS, retry_after_s=_HOPELESS_S)
        if error is not None:
            await failures.send(error, {}, send, scope["path"])


def clean(headers: Headers) -> Headers:
    """The headers that Serve may see."""
    kept: Headers = []
    seen: set[bytes] = set()
    for name, value in headers:
        if not _is_utf8(value):
            continue
        own_name = _TIMEOUT if name == _SERVE_TIMEOUT else name
        if own_name in _ONCE and own_name in seen:
            continue
        seen.add(own_name)
        kept.append((own_name, value))
    return kept


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


async def _is_routed(app: ASGIApp, scope: Scope) -> bool:
    """Whether Serve knows any application here, as its own page about that says."""
    status = 0
    body = b""

    async def hear(message: Message) -> None:
        nonlocal status, body
        status = message.get("status", status)
        body += message.get("body", b"")

    async def nothing() -> Message:
        return {"type": "http.disconnect"}

    path = scope.get("root_path", "") + _ROUTES
    page = {
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
    }
    await app({**scope, **page, "headers": []}, nothing, hear)
    return status == 200 and body != b"{}"


class _Answer:
    """Passes an answer on, unless it is an error in plain text: that one is collected first."""

    def __init__(self, scope: Scope, send: Send, is_routed: IsRouted) -> None:
        self._path: str = scope["path"]
        self._send = send
        self._is_routed = is_routed
        self._plain_error: Message | None = None
        self._text = b""
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and _is_plain_error(message):
            self._plain_error = message
        elif self._plain_error is None:
            self.started = True
            await self._send(message)
        else:
            self._text += message.get("body", b"")[: _MOST_TEXT - len(self._text)]
            if not message.get("more_body", False):
                self.started = True
                await self._send_error(self._plain_error)

    async def _send_error(self, start: Message) -> None:
        status: int = start["status"]
        text = (
            self._text.decode("utf-8", "replace").strip()
            or "the server refused the request"
        )
        if "Traceback" in text:
            text = "internal error; see the server's log"
        error = MedhaError(text)
        if text.endswith(_NO_SUCH_PATH) and await self._may_come():
            status = 503
            error = MedhaError("the application is being started", retry_after_s=1.0)
        error.status = status
        error.kind = _KINDS.get(status, MedhaError.kind)
        others = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in start["headers"]
            if name.lower() not in (b"content-type", b"content-length")
        }
        await failures.send(error, others, self._send, self._path)

    async def _may_come(self) -> bool:
        """Whether an application that has this path may be on its way."""
        return self._path.endswith(OWN_ROUTES) or not await self._is_routed()


def _is_plain_error(start: Message) -> bool:
    kind = dict(start["headers"]).get(b"content-type", b"")
    return start["status"] >= 400 and not kind.startswith(b"application/json")
