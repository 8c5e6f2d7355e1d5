"""A controller without Ray and without a grid: what RayEngine calls of one, played in this
process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import msgspec

from medha_actors.messages import (
    Accepted,
    DrainingEvent,
    EngineFacts,
    Event,
    Rejected,
    Request,
)

_encode = msgspec.msgpack.Encoder().encode
_decode_request = msgspec.msgpack.Decoder(Request).decode
Answering = Callable[[Request], Awaitable[Accepted | Rejected]]


class _Method:
    """As Ray's handles have them."""

    def __init__(self, work: Callable[..., Any]) -> None:
        self.remote = work

    def options(self, num_returns: str) -> _Method:
        return self


class PlayedController:
    """Takes every request, unless `answering` says otherwise; its events are what it is told to
    `say`."""

    def __init__(self, context_tokens: int, answering: Answering | None = None) -> None:
        self._facts = EngineFacts(max_model_len_tokens=context_tokens, model="played")
        self._answering = answering or accepting
        self._said: asyncio.Queue[bytes] = asyncio.Queue()
        self.requests: list[Request] = []
        self.cancelled: list[str] = []
        self.left: list[str] = []  # replicas that read no more
        self.ready = _Method(self._ready)
        self.submit = _Method(self._submit)
        self.cancel = _Method(self.cancelled.append)
        self.stream = _Method(self._stream)
        self.leave = _Method(self.left.append)

    def say(self, events: Iterable[Event | DrainingEvent]) -> None:
        """One message of a step, to whoever listens."""
        self.say_packed(_encode(list(events)))

    def say_packed(self, packed: bytes) -> None:
        """The same, already as it travels."""
        self._said.put_nowait(packed)

    async def heard(self) -> None:
        """Whoever listens is done with all that was said."""
        await self._said.join()

    async def _ready(self) -> bytes:
        return _encode(self._facts)

    async def _submit(self, packed: bytes, replica: str) -> bytes:
        request = _decode_request(packed)
        self.requests.append(request)
        return _encode(await self._answering(request))

    async def _stream(self, replica: str) -> AsyncIterator[Awaitable[bytes]]:
        while True:
            yield _arrived(await self._said.get())
            self._said.task_done()


async def accepting(request: Request) -> Accepted:
    """Takes every request."""
    return Accepted(
        deadline_at=request.arrived_at + 1.0,
        ttft_objective_s=1.0,
        tpot_objective_s=0.1,
        predicted_ttft_s=0.5,
    )


async def _arrived(packed: bytes) -> bytes:
    return packed
