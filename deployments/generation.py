"""A job in the engine: submit its choices, turn their events into text, and stop them whatever
happens."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Final

import msgspec

from deployments.detokenize import StopStrings
from deployments.failures import RejectedError
from deployments.handle import EngineHandle
from deployments.job import Choice, Job
from deployments.limits import output_limit
from deployments.outbox import Addition, Item, Outbox
from deployments.resuming import Past
from deployments.text import Text
from medha_actors.errors import (
    EngineError,
    MedhaError,
    RequestError,
    RequestTimeoutError,
    UnavailableError,
)
from medha_actors.messages import (
    Accepted,
    Event,
    FinishedEvent,
    ProgressEvent,
    PromptLogprobsEvent,
    Rejected,
    Request,
    TokenEvent,
)

log = logging.getLogger(__name__)

_REPEATED_AT_ONCE: Final = 256
# of one request; so its last ones are not refused for its first
_CHOICES_AT_ONCE: Final = 64
_background: set[asyncio.Future[Any]] = set()


def _spawn(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task of its own: what it does is not undone when the request's task is cancelled."""
    task = asyncio.ensure_future(work)
    _background.add(task)
    task.add_done_callback(_finished)
    return task


def _finished(task: asyncio.Task[Any]) -> None:
    _background.discard(task)
    if not task.cancelled():
        # a cancel that fails has nobody to tell: the engine is gone, and the request with it
        task.exception()


class Generation:
    """`async with Generation(...) as generation`: submitted on entry, nothing left running after
    the block."""

    def __init__(
        self, engine: EngineHandle, text: Text, job: Job, max_buffered: int
    ) -> None:
        self._engine = engine
        self._text = text
        self.job = job
        self._outbox = Outbox(max_buffered)
        self._running: set[str] = set()  # the ids of requests that may have more to say
        self._room = asyncio.Semaphore(_CHOICES_AT_ONCE)
        self._feeder: asyncio.Task[None] | None = None
        self.accepted: list[Accepted] = []
        # of a resumed answer: what its client has already
        self.shown: Addition | None = None

    async def __aenter__(self) -> Generation:
        choices = self.job.choices
        try:
            for choice in choices[:_CHOICES_AT_ONCE]:
                await self._room.acquire()
                await self._submit(choice)
        except BaseException:
            self._stop_all()
            raise
        if len(choices) > _CHOICES_AT_ONCE:
            self._feeder = _spawn(self._feed(choices[_CHOICES_AT_ONCE:]))
        return self

    async def _feed(self, choices: list[Choice]) -> None:
        """Submit the others, each when there is room for it: it arrives only then."""
        try:
            for choice in choices:
                await self._room.acquire()
                request = arriving_now(choice.request)
                await self._submit(replace(choice, request=request))
        except MedhaError as error:
            self._outbox.fail(error)
        except Exception as error:
            self._outbox.fail(EngineError(f"the engine failed: {type(error).__name__}"))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop_all()

    async def _submit(self, choice: Choice) -> None:
        request = choice.request
        past = self.job.past
        writer = ChoiceWriter(choice, self.job, self._text)
        if past is not None and await self._repeat(past, writer):
            self.accepted.append(past.record.accepted)
            return
        self._running.add(request.id)
        answer = await self._engine.submit(
            request, partial(self._hear, request.id, writer)
        )
        if isinstance(answer, Rejected):
            raise RejectedError(answer)
        self.accepted.append(answer if past is None else past.record.accepted)

    async def _repeat(self, past: Past, writer: ChoiceWriter) -> bool:
        """Say again what a resumed answer said: in silence what the client has, the rest into the
        outbox. True if that is all of the answer."""
        self.shown = Addition(0)
        try:
            for number, event in enumerate(past.record.events(), 1):
                if number % _REPEATED_AT_ONCE == 0:
                    await asyncio.sleep(0)  # others have tokens to send
                addition = writer.write(event)
                if addition is None:
                    continue
                if past.place.has(addition):
                    self.shown.absorb(addition)
                else:
                    self._outbox.put(addition)
                if writer.finished:
                    return True
        except MedhaError as error:
            self._outbox.fail(error)
            return True
        if past.place.tokens is None:
            raise RequestError(
                f"{past.place.header}: the answer has not ended yet",
                param=past.place.header,
                code="resume_beyond",
            )
        return False

    def _stop_all(self) -> None:
        if self._feeder is not None:
            self._feeder.cancel()
        for request_id in self._running:
            _spawn(self._engine.cancel(request_id))
        self._running.clear()

    async def take(self, timeout_s: float) -> list[Item]:
        """What happened since the last call; empty after `timeout_s` of silence."""
        return await self._outbox.take(timeout_s)

    def _hear(self, request_id: str, writer: ChoiceWriter, event: Event) -> None:
        """One choice's event, as it comes from the engine: into the outbox at once. Errors are
        this answer's and not the engine's."""
        if request_id not in self._running:
            return
        try:
            if isinstance(event, ProgressEvent):
                self._outbox.put_progress(event)
                return
            addition = writer.write(event)
            if addition is not None:
                self._outbox.put(addition)
            ended = writer.finished
        except MedhaError as error:
            self._outbox.fail(error)
            ended = True
        except Exception as error:
            log.exception("an event could not be written")
            self._outbox.fail(EngineError(f"the engine failed: {type(error).__name__}"))
            ended = True
        if ended:
            self._end(request_id, event)

    def _end(self, request_id: str, last: Event) -> None:
        """A choice has said all; one that the engine would go on with is stopped there."""
        self._running.discard(request_id)
        self._room.release()
        if not isinstance(last, FinishedEvent):  # a stop string, or an error of ours
            _spawn(self._engine.cancel(request_id))


def arriving_now(request: Request) -> Request:
    """The same request as one that arrives now, with what is left of its time."""
    now = time.time()
    objectives = request.objectives
    if objectives.timeout_s is not None:
        left_s = max(0.001, objectives.timeout_s - (now - request.arrived_at))
        objectives = msgspec.structs.replace(objectives, timeout_s=left_s)
    return msgspec.structs.replace(request, arrived_at=now, objectives=objectives)


class ChoiceWriter:
    """One choice's text: detokenised, cut at stop strings."""

    def __init__(self, choice: Choice, job: Job, text: Text) -> None:
        sampling = choice.request.sampling
        self._index = choice.index
        self._body = job.body
        self._detokenizer = text.detokenizer(job.body.skip_special_tokens)
        self._stops = StopStrings(job.body.stops, job.body.include_stop_str_in_output)
        # special tokens have no text in which these could be found
        self._special_stops = text.table.special_ids(job.body.stops)
        self._stop_ids = frozenset(sampling.stop_token_ids)
        self._eos = frozenset(text.eos_token_ids)
        # control tokens that the reader of calls must see
        self._markers = job.tools.markers if job.tools is not None else {}
        self._speller = job.thinking.speller() if job.thinking is not None else None
        self._keep_tokens = sampling.logprobs is not None or job.body.return_token_ids
        limit = output_limit(job.body)
        # echo alone: the engine's one token is not shown
        self._hidden = limit is not None and limit[1] == 0
        # a stop token: no text if the request ends with it
        self._held: TokenEvent | None = None
        self._generated = 0
        self.finished = False

    def write(
        self, event: TokenEvent | PromptLogprobsEvent | FinishedEvent
    ) -> Addition | None:
        """What to send, if anything; sets `finished`; raises MedhaError for requests that
        failed."""
        if isinstance(event, TokenEvent):
            return None if self._hidden else self._token(event)
        if isinstance(event, PromptLogprobsEvent):
            return Addition(
                self._index, prompt_logprobs=[event], generated=self._generated
            )
        return self._end(event)

    def _token(self, event: TokenEvent) -> Addition:
        text = self._release_held()
        self._generated += 1
        addition = Addition(self._index, generated=self._generated)
        if self._keep_tokens:
            addition.tokens.append(event)
            addition.starts.append(self._detokenizer.start_of(event.token_id))
        special = self._special_stops.get(event.token_id)
        if event.token_id in self._stop_ids:
            self._held = event
        elif special is not None and self._stops_count:
            text += self._detokenizer.flush()
        else:
            special = None
            text += self._text_of(event.token_id)
        addition.text = self._shown(text)
        if self._generated == 1:
            addition.first_token_at = event.at
        if self._stops.matched is not None:
            self._finish(addition, self._stops.matched)
        elif special is not None and self._held is None:
            addition.text += self._stops.flush() + self._stop_text(special)
            self._finish(addition, special)
        return addition

    def _text_of(self, token_id: int) -> str:
        """With the marks that are special tokens, where somebody reads them."""
        text = self._markers.get(token_id) or self._detokenizer.push(token_id)
        return text if self._speller is None else self._speller.spell(token_id, text)

    def _finish(self, addition: Addition, stop: str) -> None:
        addition.finish_reason = "stop"
        addition.stop_reason = stop
        self.finished = True

    def _stop_text(self, stop: str) -> str:
        return stop if self._body.include_stop_str_in_output else ""

    def _release_held(self) -> str:
        held = self._held
        self._held = None
        return self._detokenizer.push(held.token_id) if held is not None else ""

    def _shown(self, text: str) -> str:
        return self._stops.push(text, self._stops_count)

    @property
    def _stops_count(self) -> bool:
        """Stop strings that are complete with the token after min_tokens, or later."""
        return self._generated > self._body.min_tokens

    def _end(self, event: FinishedEvent) -> Addition:
        self.finished = True
        if event.reason == "timeout":
            raise RequestTimeoutError(
                event.message or "the request's time limit passed"
            )
        if event.reason == "error" and event.retry_after_s is not None:
            raise UnavailableError(
                event.message or "the engine stopped", retry_after_s=event.retry_after_s
            )
        if event.reason == "error":
            raise EngineError(event.message or "the engine failed")
        stop_reason = self._stop_reason(event)
        text = ""
        if event.reason != "stop" or self._body.include_stop_str_in_output:
            text = self._release_held()
        text = self._shown(text + self._detokenizer.flush()) + self._stops.flush()
        reason = event.reason
        if self._stops.matched is not None:
            reason = "stop"
            stop_reason = self._stops.matched
        elif isinstance(stop_reason, str):
            text += self._stop_text(stop_reason)
        return Addition(
            self._index,
            text,
            generated=self._generated,
            finish_reason=reason,
            stop_reason=stop_reason,
            ending=event,
        )

    def _stop_reason(self, event: FinishedEvent) -> str | int | None:
        """Which of the client's stops ended the request; None: the end of the answer, or nothing
        the engine knows of."""
        if event.reason != "stop" or self._held is None:
            return None
        stop = self._special_stops.get(self._held.token_id)
        if stop is not None or self._held.token_id in self._eos:
            return stop
        return self._held.token_id
