"""A raw TCP server that answers with given bytes, in given pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest

from clients.client import Client


class RawServer:
    """Answers every request with the same bytes, written piece by piece, and then closes the
    connection."""

    def __init__(self, pieces: Sequence[bytes], hang: bool = False) -> None:
        self._pieces = pieces
        self._hang = hang
        self.requests: list[bytes] = []
        self.asked = asyncio.Event()
        self.gone = asyncio.Event()
        self.url = ""

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (
                int(line[15:])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length")
            ),
            0,
        )
        self.requests.append(head + await reader.readexactly(length))
        self.asked.set()
        for piece in self._pieces:
            writer.write(piece)
            await writer.drain()
        if self._hang:
            await reader.read()
            self.gone.set()
        writer.close()


def streamed(body: bytes) -> bytes:
    """An HTTP answer whose body ends with the connection."""
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
        b"x-medha-ttft-deadline-ms: 500.0\r\n\r\n" + body
    )


def whole(status: int, body: bytes, *headers: bytes) -> bytes:
    lines = [
        b"HTTP/1.1 %d X" % status,
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        *headers,
    ]
    return b"\r\n".join([*lines, b"", body])


Serving = Callable[..., Any]


@pytest.fixture
async def serving() -> AsyncIterator[Serving]:
    """`server, client = await serving(piece, piece, ...)`."""
    async with AsyncExitStack() as stack:

        async def begin(
            *pieces: bytes, hang: bool = False, **options: Any
        ) -> tuple[RawServer, Client]:
            raw = RawServer(pieces, hang)
            listener = await asyncio.start_server(raw.serve, "127.0.0.1", 0)
            stack.callback(listener.close)
            raw.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
            client = await stack.enter_async_context(
                Client(raw.url, model="toy", **options)
            )
            return raw, client

        yield begin
