"""Who may ask: API keys on every route but health, and pages of other origins (CORS).

Both are ASGI middleware around the whole application, so that a new route is behind them without
doing anything. Neither looks at a body: streams pass as they are.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Iterator
from typing import Final

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from deployments import failures
from deployments.keys import Key, Keys
from medha_actors.config import CorsConfig
from medha_actors.errors import UnauthorizedError
from medha_actors.quantities import LOOPBACK

_OPEN: Final = frozenset({"/health", "/ping"})
# What a browser opens by itself: it can be asked for the key, and sends it as a password.
_PAGES: Final = ("/", "/favicon.ico", "/medha")
_LOOPBACK_ORIGIN: Final = (
    r"https?://(([\w-]+\.)*localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?"
)
_SHOWN_HEADERS: Final = (
    "retry-after",
    "retry-after-ms",
    "traceresponse",
    "x-medha-predicted-ttft-ms",
    "x-medha-trace-id",
    "x-medha-ttft-deadline-ms",
    "x-request-id",
    "x-should-retry",
)


def middlewares(
    cors: CorsConfig,
    keys: Keys | None,
    own_headers: Callable[[Request], dict[str, str]],
) -> list[Middleware]:
    """Around an application, the outermost first: a browser's question whether it may ask carries
    no key."""
    chosen = []
    if cors.origins:
        chosen.append(_cors(cors))
    if keys is not None:
        chosen.append(Middleware(Gate, keys=keys, own_headers=own_headers))
    return chosen


def _cors(config: CorsConfig) -> Middleware:
    return Middleware(
        CORSMiddleware,
        allow_origins=[origin for origin in config.origins if origin != LOOPBACK],
        allow_origin_regex=_LOOPBACK_ORIGIN if LOOPBACK in config.origins else None,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=_SHOWN_HEADERS,
    )


def key_of(scope: Scope) -> Key | None:
    """Whose key a request has; None where the server has no keys."""
    key: Key | None = scope.get("medha_key")
    return key


class Gate:
    """Lets requests with a known key pass, and anybody ask for health."""

    def __init__(
        self, app: ASGIApp, keys: Keys, own_headers: Callable[[Request], dict[str, str]]
    ) -> None:
        self._app = app
        self._keys = keys
        self._own_headers = own_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "").removeprefix(
            scope.get("root_path", "").rstrip("/")
        )
        if scope["type"] == "lifespan" or (scope["type"] == "http" and path in _OPEN):
            await self._app(scope, receive, send)
            return
        is_page = scope.get("method") in ("GET", "HEAD") and _is_page(path)
        key = self._key(Headers(scope=scope), is_page)
        if key is not None:
            await self._app({**scope, "medha_key": key}, receive, send)
        elif scope["type"] == "http":
            await failures.send(_refusal(), self._headers(scope, is_page), send, path)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _key(self, headers: Headers, is_page: bool) -> Key | None:
        found = [self._keys.find(secret) for secret in _secrets(headers, is_page)]
        return next((key for key in found if key is not None), None)

    def _headers(self, scope: Scope, is_page: bool) -> dict[str, str]:
        scheme = "Basic" if is_page else "Bearer"
        own = self._own_headers(Request(scope))
        return {**own, "www-authenticate": f'{scheme} realm="medha"'}


def _is_page(path: str) -> bool:
    return path in _PAGES or path.startswith("/medha/")


def _secrets(headers: Headers, is_page: bool) -> Iterator[bytes]:
    """What a request shows as its key: as OpenAI's clients do, as Anthropic's, as a browser."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield value.strip().encode("latin-1")
    elif scheme.lower() == "basic" and is_page:
        with contextlib.suppress(ValueError):  # binascii.Error is one
            yield base64.b64decode(value.strip(), validate=True).partition(b":")[2]
    if "x-api-key" in headers:
        yield headers["x-api-key"].encode("latin-1")


def _refusal() -> UnauthorizedError:
    return UnauthorizedError(
        "this server wants a known API key: `Authorization: Bearer KEY`"
    )
