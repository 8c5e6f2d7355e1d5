"""Asking an ASGI application from within the process."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Headers = list[tuple[bytes, bytes]]


class Said(NamedTuple):
    """A whole answer."""

    status: int
    headers: Headers
    body: bytes

    def with_body(self, body: bytes) -> Said:
        """The same with something else in it."""
        kept = [
            (name, value) for name, value in self.headers if name != b"content-length"
        ]
        length = str(len(body)).encode()
        return Said(self.status, [*kept, (b"content-length", length)], body)


async def ask(app: ASGIApp, scope: Scope) -> Said:
    """What an application answers to a request without a body."""
    start: Message = {}
    chunks: list[bytes] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        else:
            chunks.append(message.get("body", b""))

    await app(dict(scope), replaying(b"", _never), send)
    return Said(start["status"], list(start.get("headers", ())), b"".join(chunks))


async def say(said: Said, send: Send) -> None:
    """Send a whole answer."""
    start = {
        "type": "http.response.start",
        "status": said.status,
        "headers": said.headers,
    }
    await send(start)
    await send({"type": "http.response.body", "body": said.body})


def replaying(body: bytes, receive: Receive) -> Receive:
    """What receives a body that has been read, and then what else comes."""
    left: list[dict[str, Any]] = [
        {"type": "http.request", "body": body, "more_body": False}
    ]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again


async def _never() -> Message:
    """Of a client that stays."""
    await asyncio.Event().wait()
    raise AssertionError("nobody sets it")
