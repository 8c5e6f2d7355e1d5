"""RayEngine: how an ingress replica reaches the controller (deployments.handle.EngineHandle).

One long-lived streaming generator carries the events of all the replica's requests, one item per
step. When the controller is lost, waiting requests end with an honest error, and the new controller
is looked up until it answers.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import msgspec
from ray.exceptions import RayActorError, RayError, RayTaskError

from medha_actors.errors import EngineError, MedhaError, UnavailableError
from medha_actors.messages import (
    Accepted,
    DrainingEvent,
    Event,
    FinishedEvent,
    Rejected,
    Request,
)

_log = logging.getLogger("medha.engine")
_encode = msgspec.msgpack.Encoder().encode
_decode_events = msgspec.msgpack.Decoder(list[Event | DrainingEvent]).decode
_decode_answer = msgspec.msgpack.Decoder(Accepted | Rejected).decode
_RETRY_S = 0.5
_Answer = TypeVar("_Answer")


class RayEngine:
    """The controller actor, seen from one ingress replica. `find` looks its handle up (ValueError:
    not there yet)."""

    def __init__(self, find: Callable[[], Any]) -> None:
        self._find = find
        self._replica = secrets.token_hex(8)
        self._mailboxes: dict[str, asyncio.Queue[Event]] = {}
        self._live: set[str] = (
            set()
        )  # submitted and not finished, whether anybody still listens or not
        self._controller: Any = None
        self._draining = False  # the controller takes no new requests
        self._reader: asyncio.Task[None] | None = None
        self.max_model_len_tokens = 0

    async def start(self) -> None:
        """Wait until the pipeline serves; raises what kept it from starting."""
        await self._attach()
        self._reader = asyncio.create_task(self._read())

    async def stop(self) -> None:
        """Let go of the stream."""
        if self._reader is not None:
            self._reader.cancel()

    def ready(self) -> bool:
        return self._controller is not None and not self._draining

    def events(self, request_id: str) -> AsyncIterator[Event]:
        """Register at once; iterate later."""
        mailbox = self._mailboxes[request_id] = asyncio.Queue()
        return self._deliver(request_id, mailbox)

    async def submit(self, request: Request) -> Accepted | Rejected:
        self._live.add(request.id)  # from now on a cancellation must reach the controller
        try:
            packed = await self._call(
                lambda controller: controller.submit.remote(_encode(request), self._replica)
            )
        except MedhaError:
            self._live.discard(request.id)
            raise
        answer = _decode_answer(packed)
        if isinstance(answer, Rejected):
            self._live.discard(request.id)
        return answer

    async def cancel(self, request_id: str) -> None:
        self._mailboxes.pop(request_id, None)
        if request_id in self._live and self._controller is not None:
            self._live.discard(request_id)
            self._controller.cancel.remote(request_id)

    async def stats(self) -> dict[str, Any]:
        """The scheduler's counters."""
        stats: dict[str, Any] = msgspec.msgpack.decode(
            await self._call(lambda controller: controller.stats.remote())
        )
        return stats

    async def drain(self, timeout_s: float) -> int:
        """See Controller.drain. Raises UnavailableError while there is no controller."""
        return await self._call(lambda controller: controller.drain.remote(timeout_s))

    async def ask(self, method: str, *arguments: Any) -> bytes:
        """Call one of the controller's methods for telemetry (actors.telemetry.remote.Observed)."""
        return await self._call(lambda controller: getattr(controller, method).remote(*arguments))

    async def _call(self, call: Callable[[Any], Awaitable[_Answer]]) -> _Answer:
        if self._controller is None:
            raise UnavailableError("the engine is being rebuilt", retry_after_s=5)
        try:
            return await call(self._controller)
        except RayActorError:
            raise UnavailableError(
                "the engine was lost and is being rebuilt", retry_after_s=5
            ) from None

    async def _deliver(
        self, request_id: str, mailbox: asyncio.Queue[Event]
    ) -> AsyncIterator[Event]:
        try:
            while True:
                event = await mailbox.get()
                yield event
                if isinstance(event, FinishedEvent):
                    return
        finally:
            if self._mailboxes.get(request_id) is mailbox:
                del self._mailboxes[request_id]

    async def _read(self) -> None:
        """Route events for ever; after a loss, attach to the next controller."""
        while True:
            try:
                stream = self._controller.stream.options(num_returns="streaming").remote(
                    self._replica
                )
                async for item in stream:
                    self._route(_decode_events(await item))
            except RayError as error:
                _log.error("the controller is lost: %s", type(error).__name__)
            self._controller = None
            self._lose()
            await self._attach()

    def _route(self, events: list[Event | DrainingEvent]) -> None:
        for event in events:
            if isinstance(event, DrainingEvent):
                self._draining = True
                continue
            if isinstance(event, FinishedEvent):
                self._live.discard(event.request_id)
            mailbox = self._mailboxes.get(event.request_id)
            if mailbox is not None:
                mailbox.put_nowait(event)

    def _lose(self) -> None:
        self._live.clear()
        for request_id, mailbox in self._mailboxes.items():
            mailbox.put_nowait(
                FinishedEvent(
                    request_id=request_id,
                    reason="error",
                    message="the engine was lost while this request was in it",
                    finished_at=time.time(),
                )
            )

    async def _attach(self) -> None:
        while True:
            try:
                controller = self._find()
                self.max_model_len_tokens = await controller.ready.remote()
            except (ValueError, RayActorError):  # not made yet, or lost again while starting
                await asyncio.sleep(_RETRY_S)
            except RayTaskError as error:
                cause = error.cause
                raise cause if isinstance(cause, MedhaError) else EngineError(str(cause)) from None
            else:
                self._draining = False
                self._controller = controller
                return
