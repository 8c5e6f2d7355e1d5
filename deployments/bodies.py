"""Reading a request: its body within bounds, and its end.

Bounds hold before work begins: on one body's size, on all large bodies that are in memory at once,
and on the values in a body before they become objects (a list of 27 million ones is 55 MB of JSON,
but a second and 200 MB as a list).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from deployments.memory import MemoryReturn
from medha_actors.config import LimitsConfig
from medha_actors.errors import (
    OverloadedError,
    RequestError,
    RequestTimeoutError,
    TooLargeError,
)

LARGE_BYTES: Final = 2**20
# a sender that stops in the middle of a body is not waited for
_SILENCE_S: Final = 30.0


class Body:
    """A body in memory, which counts against the room for large ones until it is released."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._size = 0
        self._counted = 0
        self.data = b""

    def add(self, size: int) -> None:
        """`size` more bytes have come; raises TooLargeError or OverloadedError."""
        self._size += size
        self._bodies.check_size(self._size)
        if self._size > LARGE_BYTES:
            self._bodies.take(self._size - self._counted)
            self._counted = self._size

    def release(self) -> None:
        """What was to be made of it has been made. May be called again."""
        self.data = b""
        self._bodies.give_back(self._counted, self._size)
        self._counted = 0
        self._size = 0


class Bodies:
    """Reads the bodies of one server; they share the room for large ones."""

    def __init__(self, limits: LimitsConfig, most_values: int) -> None:
        """`most_values`: how many JSON values a body may have apart from its plain prompt."""
        self._limits = limits
        self._most_values = most_values
        self._memory = MemoryReturn()
        self.large_bytes = 0  # of large bodies that are in memory now

    @classmethod
    def widest(cls, all_bodies: Sequence[Bodies]) -> Bodies:
        """For what any of these would take."""
        every = [bodies._limits for bodies in all_bodies]
        limits = msgspec.structs.replace(
            every[0],
            max_body_bytes=max([each.max_body_bytes for each in every]),
            max_large_bodies_bytes=max([each.max_large_bodies_bytes for each in every]),
        )
        return cls(limits, max([bodies._most_values for bodies in all_bodies]))

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[Body]:
        """The whole body, released after the block if not before. Raises TooLargeError,
        OverloadedError (there is room for it later), RequestTimeoutError, RequestError."""
        announced = request.headers.get("content-length", "")
        if announced.isascii() and announced.isdigit():
            self.check_size(int(announced[:20]))
        body = Body(self)
        try:
            chunks: list[bytes] = []
            async for chunk in _chunks(request):
                body.add(len(chunk))
                chunks.append(chunk)
            body.data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            chunks.clear()
            check_values(body.data, self._most_values)
            yield body
        finally:
            body.release()

    def check_size(self, size: int) -> None:
        """Raises TooLargeError for a body that has, or will have, so many bytes."""
        limit = self._limits.max_body_bytes
        if size > limit:
            raise TooLargeError(
                f"the body is over {limit} bytes", code="body_too_large"
            )

    def take(self, more: int) -> None:
        """Room for `more` bytes of a large body; raises OverloadedError."""
        others = self.large_bytes
        room = self._limits.max_large_bodies_bytes
        if others and others + more > room:
            raise OverloadedError(
                f"large bodies in work fill the {room} bytes they may have",
                code="large_bodies",
                retry_after_s=1.0,
            )
        self.large_bytes += more

    def give_back(self, room: int, size: int) -> None:
        """A body of `size` bytes, `room` of which were taken, is no longer there."""
        self.large_bytes -= room
        self._memory.used(size)


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(_SILENCE_S):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except ClientDisconnect:
            raise RequestError("the client went away while it was sending") from None
        except TimeoutError:
            raise RequestTimeoutError(
                f"nothing of the body came for {_SILENCE_S:g} s", code="body_timeout"
            ) from None
        yield chunk


class _Plain(msgspec.Struct):
    """Where much text may stand; the rest of a body is skipped without being built."""

    prompt: msgspec.Raw = msgspec.Raw(b"")


def check_values(body: bytes, most: int) -> None:
    """Raises RequestError for a body with more than `most` JSON values.

    Values are separated by commas. Commas inside a plain prompt do not count; those inside other
    texts do, so `most` has to be well above what a sensible text has.
    """
    if len(body) <= most:
        return
    commas = body.count(b",")
    if commas < most:
        return
    try:
        prompt = bytes(msgspec.json.decode(body, type=_Plain).prompt)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise RequestError("the body is not a valid JSON object in UTF-8") from None
    if prompt.startswith(b'"'):
        commas -= prompt.count(b",")
    if commas >= most:
        raise RequestError(
            f"the body has more than {most} values", code="too_many_values"
        )


async def until_disconnected(receive: Receive) -> None:
    """Returns when the client has gone."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        # a server that repeats empty messages must not hold the loop
        await asyncio.sleep(0)
