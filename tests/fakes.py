"""A scripted engine behind the real HTTP server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from medha_actors.actors.records import Records
from medha_actors.errors import UnavailableError
from medha_actors.messages import (
    TOKEN_BYTES,
    Accepted,
    Event,
    FinishedEvent,
    FinishReason,
    PromptLogprobsEvent,
    Rejected,
    Request,
    TokenEvent,
    unpack_tokens,
)
from medha_actors.record import Record

_DRAINING = Rejected(
    status=503, kind="service_unavailable_error", message="stopping", retry_after_s=5.0
)
Script = Callable[[Request], AsyncIterator[Event]]


class FakeEngine:
    """Plays a script for every request; remembers what it was asked, and as the controller does
    what it said. A resumed request hears of the script what it does not know yet."""

    def __init__(
        self,
        script: Script,
        answer: Callable[[Request], Accepted | Rejected] | None = None,
    ) -> None:
        self.script = script
        self.answer = answer or accept
        self.requests: list[Request] = []
        self.cancelled: list[str] = []
        self._changed = asyncio.Event()
        self.is_ready = True
        self.now = 0.0  # of the records
        self._records = Records(60.0, 2**20)
        self._draining = False
        self._receivers: dict[str, Callable[[Event], None]] = {}
        self._players: dict[str, asyncio.Task[None]] = {}

    async def submit(
        self, request: Request, receive: Callable[[Event], None]
    ) -> Accepted | Rejected:
        if not self.is_ready:  # the real one waits for a while first
            raise UnavailableError("the engine is being rebuilt", retry_after_s=2)
        self.requests.append(request)
        self._changed.set()
        if self._draining and request.resumed is None:
            return _DRAINING
        older = self._records.superseded_by(request)
        if older is not None:
            self._end(older, "abort")
        answer = self.answer(request)
        if isinstance(answer, Accepted):
            self._records.begin(request, answer, self.now)
            self._receivers[request.id] = receive
            self._players[request.id] = asyncio.ensure_future(self._play(request))
        return answer

    async def _play(self, request: Request) -> None:
        async for event in self.script(request):
            if not _is_known(event, request):
                self._tell(request.id, event)

    def _tell(self, request_id: str, event: Event) -> None:
        if isinstance(event, Event):  # scripts may say nonsense
            self._records.happened([event], self.now)
        receive = self._receivers.get(request_id)
        if isinstance(event, FinishedEvent):
            self._players.pop(request_id, None)
            self._receivers.pop(request_id, None)
        if receive is None:
            return
        try:
            receive(event)
        except Exception:
            self._stop(request_id)

    def _end(self, request_id: str, reason: FinishReason, **more: Any) -> None:
        """As an engine ends a request before its time."""
        player = self._players.pop(request_id, None)
        if player is not None:
            player.cancel()
            self._tell(
                request_id, FinishedEvent(request_id=request_id, reason=reason, **more)
            )

    async def cancel(self, request_id: str) -> None:
        self._stop(request_id)

    def _stop(self, request_id: str) -> None:
        self.cancelled.append(request_id)
        self._receivers.pop(request_id, None)
        self._end(request_id, "abort")
        self._changed.set()

    async def drain(self, timeout_s: float) -> int:
        """Let finish what can; returns how many requests could not."""
        self._draining = True
        if self._players:
            await asyncio.wait(self._players.values(), timeout=timeout_s)
        unfinished = list(self._players)
        for request_id in unfinished:
            self._end(
                request_id, "error", message="the engine stopped", retry_after_s=5.0
            )
        return len(unfinished)

    async def stop(self) -> None:
        """What is live ends with an error."""
        self.is_ready = False
        message = "the engine dropped the request"
        for request_id in list(self._players):
            self._end(request_id, "error", message=message, retry_after_s=5.0)

    async def record(self, answer_id: str) -> Record | None:
        return self._records.find(answer_id, self.now)

    def ready(self) -> bool:
        return self.is_ready and not self._draining

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that submit() or cancel() brings about."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def until_all_cancelled(self) -> None:
        """Every request was cancelled, and nothing else was."""
        await self.until(lambda: len(self.cancelled) >= len(self.requests))
        assert set(self.cancelled) == {request.id for request in self.requests}


def _is_known(event: Event, request: Request) -> bool:
    """Whether a resumed request brought this with it."""
    known = request.resumed
    if known is None:
        return False
    if isinstance(event, TokenEvent):
        return event.index < len(known.token_ids) // TOKEN_BYTES
    if isinstance(event, PromptLogprobsEvent):
        return event.start + 1 + len(event.entries) <= known.prompt_logprobs_until
    return False


def accept(request: Request) -> Accepted:
    return Accepted(
        deadline_at=request.arrived_at + 2.5,
        ttft_objective_s=2.5,
        tpot_objective_s=0.2,
        predicted_ttft_s=1.25,
    )


def token(
    request: Request, index: int, token_id: int, logprobs: bool = False
) -> TokenEvent:
    top = ((token_id, -0.25), (65, -1.5)) if logprobs else ()
    return TokenEvent(
        request.id,
        index,
        token_id,
        request.arrived_at + 1.0 + index,
        -0.25 if logprobs else None,
        top,
    )


def finished(
    request: Request,
    generated: int,
    reason: FinishReason = "length",
    message: str | None = None,
) -> FinishedEvent:
    return FinishedEvent(
        request_id=request.id,
        reason=reason,
        message=message,
        prompt_tokens=request.prompt_tokens,
        generated_tokens=generated,
        arrived_at=request.arrived_at,
        scheduled_at=request.arrived_at + 0.5,
        first_token_at=request.arrived_at + 1.0,
        finished_at=request.arrived_at + 2.0,
        deadline_at=request.arrived_at + 2.5,
        preemptions=3,
    )


def saying(token_ids: Iterable[int], end: int | None = None) -> Script:
    """Generates these ids, up to max_tokens; `end` is an end-of-sequence id sent after them."""
    ids = list(token_ids)

    async def script(request: Request) -> AsyncIterator[Event]:
        limit = request.sampling.max_tokens
        out = [*ids, end] if end is not None else ids
        for index, token_id in enumerate(out[:limit]):
            yield token(request, index, token_id, request.sampling.logprobs is not None)
        stopped = (
            end is not None
            and end in request.sampling.stop_token_ids
            and len(out) <= limit
        )
        yield finished(request, min(limit, len(out)), "stop" if stopped else "length")

    return script


async def echo(request: Request) -> AsyncIterator[Event]:
    """Says the prompt again."""
    async for event in saying(unpack_tokens(request.prompt_token_ids))(request):
        yield event
