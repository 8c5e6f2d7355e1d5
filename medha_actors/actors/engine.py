"""RayEngine: how an ingress replica reaches the controller (deployments.handle.EngineHandle).

One long-lived streaming generator carries the events of all the replica's requests, one item per
step. When the controller is lost, the next one is looked up until it answers, and every live
request is submitted to it again from its known tokens: its stream pauses and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec
from ray.exceptions import RayActorError, RayError

from medha_actors.actors.reports import RayReports
from medha_actors.actors.sessions import Session, attach, attach_again
from medha_actors.actors.submissions import Submission, Submissions
from medha_actors.errors import EngineError, UnavailableError
from medha_actors.fleet.notices import Notice
from medha_actors.messages import Accepted, DrainingEvent, Event, Rejected, Request
from medha_actors.record import Record

_log = logging.getLogger("medha.engine")
_encode = msgspec.msgpack.Encoder().encode
_decode_events = msgspec.msgpack.Decoder(list[Event | DrainingEvent | Notice]).decode
_decode_answer: Callable[[bytes], Accepted | Rejected] = msgspec.msgpack.Decoder(
    Accepted | Rejected
).decode
_decode_record: Callable[[bytes], Record | None] = msgspec.msgpack.Decoder(
    Record | None
).decode
T = TypeVar("T")
_ROUTED_AT_ONCE: Final = 128  # events, until others have their turn
_DROPPED = "the engine dropped the request"
_RETRY_AFTER_S = 5.0
_DEADLY = "the engine died repeatedly while this request was in it"
_SUSPECT_LOSSES = 2  # from so many on, a request is submitted alone
_TRIAL_S = 10.0  # a suspect that has lived so long in an engine is none


class RayEngine:
    """The controller actor, seen from one ingress replica. `find` looks its handle up (ValueError:
    not there yet)."""

    def __init__(
        self,
        find: Callable[[], Any],
        patience_s: float = 10.0,
        hear: Callable[[Notice], None] | None = None,
    ) -> None:
        """`patience_s`: how long a new request waits for an engine that is being made anew;
        `hear`: called with the notices of a grid that is one of several."""
        self._find = find
        self._hear = hear
        self._patience_s = patience_s
        self._live = Submissions(self._stop_there)
        self._session: Session | None = None
        self._attached = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._model = ""
        self.max_model_len_tokens = 0
        self.reports = RayReports(self._call)

    async def start(self) -> None:
        """Wait until the pipeline serves; raises what kept it from starting."""
        session = await attach(self._find)
        self._model = session.facts.model
        self._enter(session)
        self._reader = asyncio.create_task(self._read(session))
        self._reader.add_done_callback(self._reader_ended)

    async def stop(self) -> None:
        """Let go of the stream; what is live ends with an error, and in the engine too."""
        if self._session is not None:
            self._session.controller.leave.remote(self._session.replica)
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait([self._reader])

    def _reader_ended(self, reader: asyncio.Task[None]) -> None:
        """Stopped, or broken as nobody foresaw (`check_health`): nobody is left waiting."""
        if not reader.cancelled() and (error := reader.exception()) is not None:
            _log.critical("the reader of the engine's events has ended", exc_info=error)
        self._leave()
        self._live.drop(_DROPPED, _RETRY_AFTER_S)

    def ready(self) -> bool:
        """Whether an engine is there now that takes requests."""
        return self._session is not None and not self._session.draining

    @property
    def attached(self) -> bool:
        """Whether there is an engine now, draining or not."""
        return self._session is not None

    @property
    def live(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    def check_health(self) -> None:
        """Raises EngineError when this object cannot serve any more: make it anew."""
        if self._reader is None or self._reader.done():
            raise EngineError("the reader of the engine's events has ended")

    # ---------------------------------------------------------------- requests

    async def submit(
        self, request: Request, receive: Callable[[Event], None]
    ) -> Accepted | Rejected:
        """Hand a request to the engine of now, or of soon; raises UnavailableError, EngineError.
        `receive`: see deployments.handle."""
        submission = Submission(request, receive)
        self._live.add(submission)
        try:
            answer = await self._submit_first(submission)
        except BaseException:
            self._live.pop(request.id)
            if submission.delivered:  # whoever waited for the answer has gone
                self._stop_there(submission)
            raise
        if isinstance(answer, Rejected):
            self._live.pop(request.id)
        else:
            asyncio.get_running_loop().call_soon(self._live.begin, submission)
        return answer

    async def _submit_first(self, submission: Submission) -> Accepted | Rejected:
        while True:
            session = await self._somebody()
            if submission.losses >= _SUSPECT_LOSSES:
                raise EngineError(_DEADLY)
            answer = await self._hand_over(session, submission)
            if isinstance(answer, Rejected):
                return answer
            if answer is not None and submission.delivered:  # and not lost again since
                submission.accepted = True
                return answer

    async def cancel(self, request_id: str) -> None:
        """Stop the request, which hears nothing more; harmless for unknown ids and finished
        requests."""
        submission = self._live.pop(request_id)
        if submission is not None:
            submission.ended = True
            self._stop_there(submission)

    def _stop_there(self, submission: Submission) -> None:
        """The engine need not go on with it."""
        if self._session is not None:
            self._session.controller.cancel.remote(submission.request.id)

    def release(self) -> list[Submission]:
        """Give up an engine that does not come back, or has to go: its live requests, for others to
        `adopt`."""
        if self._session is not None:
            self._session.controller.leave.remote(self._session.replica)
        if self._reader is not None:
            self._reader.remove_done_callback(self._reader_ended)
            self._reader.cancel()
        self._leave()
        return self._live.release()

    async def adopt(self, submission: Submission) -> None:
        """Go on here with a request of an engine that is gone, from its known tokens."""
        session = await self._somebody()
        self._live.add(submission)
        await self._submit_one_again(session, submission)

    async def record(self, answer_id: str) -> Record | None:
        """What the engine of now, or of soon, knows of an answer; raises UnavailableError."""
        await self._somebody()
        return _decode_record(
            await self._call(lambda engine: engine.record.remote(answer_id))
        )

    async def stats(self) -> dict[str, Any]:
        """The scheduler's counters."""
        packed = await self._call(lambda controller: controller.stats.remote())
        stats: dict[str, Any] = msgspec.msgpack.decode(packed)
        return stats

    async def drain(self, timeout_s: float) -> int:
        """See Controller.drain. Raises UnavailableError while there is no controller."""
        return await self._call(lambda controller: controller.drain.remote(timeout_s))

    async def _call(self, call: Callable[[Any], Awaitable[T]]) -> T:
        if self._session is None:
            raise UnavailableError(
                "the engine is being rebuilt", retry_after_s=_RETRY_AFTER_S
            )
        try:
            return await call(self._session.controller)
        except RayActorError:
            raise UnavailableError(
                "the engine was lost and is being rebuilt", retry_after_s=_RETRY_AFTER_S
            ) from None

    async def _somebody(self) -> Session:
        """The session of now, or the next one if it comes soon."""
        try:
            async with asyncio.timeout(self._patience_s):
                await self._attached.wait()
        except TimeoutError:
            raise UnavailableError(
                "the engine is being rebuilt", retry_after_s=_RETRY_AFTER_S
            ) from None
        assert self._session is not None, "set together"
        return self._session

    async def _hand_over(
        self, session: Session, submission: Submission
    ) -> Accepted | Rejected | None:
        """Submit to one engine; None: it is gone."""
        submission.delivered = True
        request = submission.again() if submission.losses else submission.request
        try:
            call = session.controller.submit.remote(_encode(request), session.replica)
            return _decode_answer(await call)
        except RayActorError:
            if self._session is session:
                self._leave()
            return None

    # ---------------------------------------------------------------- the engine's life

    async def _read(self, session: Session) -> None:
        """Route events for ever; after a loss, go on with the next controller."""
        while True:
            stream = session.controller.stream.options(num_returns="streaming").remote(
                session.replica
            )
            again = asyncio.create_task(self._submit_again(session))
            try:
                async for item in stream:
                    await self._route(session, _decode_events(await item))
            except RayError as error:
                _log.error("the controller is lost: %s", type(error).__name__)
            finally:
                again.cancel()
            self._leave()
            self._live.lose(_DEADLY)
            # A controller that lives after all ends what it has of this replica.
            with contextlib.suppress(RayError):
                await session.controller.leave.remote(session.replica)
            session = await attach_again(self._find)
            self._enter(session)

    def _enter(self, session: Session) -> None:
        self.max_model_len_tokens = session.facts.max_model_len_tokens
        self._session = session
        self._attached.set()

    def _leave(self) -> None:
        self._session = None
        self._attached.clear()

    async def _route(
        self, session: Session, events: list[Event | DrainingEvent | Notice]
    ) -> None:
        """Each to its receiver. What waits for a reader that was late is much at once."""
        for number, event in enumerate(events, 1):
            if number % _ROUTED_AT_ONCE == 0:
                await asyncio.sleep(0)  # others have tokens to send
            if isinstance(event, DrainingEvent):
                session.draining = True
                continue
            if isinstance(event, Notice):
                if self._hear is not None:
                    self._hear(event)
                continue
            self._live.tell(event)

    async def _submit_again(self, session: Session) -> None:
        """Give the live requests of before to the engine of now: the suspects at last, each when
        the one before it has shown to be harmless."""
        waiting = self._live.waiting()
        if session.facts.model != self._model:
            for submission in waiting:
                self._live.end(
                    submission,
                    "the model was replaced while this request was in the engine",
                )
            self._model = session.facts.model
            return
        suspects = [
            submission for submission in waiting if submission.losses >= _SUSPECT_LOSSES
        ]
        others = [
            submission for submission in waiting if submission.losses < _SUSPECT_LOSSES
        ]
        await asyncio.gather(
            *[self._submit_one_again(session, submission) for submission in others]
        )
        for suspect in suspects:
            self._live.on_trial = suspect
            await self._submit_one_again(session, suspect)
            try:
                async with asyncio.timeout(_TRIAL_S):
                    await suspect.heard.wait()
            except TimeoutError:
                suspect.losses = 0
            self._live.on_trial = None

    async def _submit_one_again(self, session: Session, submission: Submission) -> None:
        if submission.request.id not in self._live:
            return
        answer = await self._hand_over(session, submission)
        if isinstance(answer, Rejected):
            self._live.end(
                submission,
                f"the engine was lost, and the next one refused: {answer.message}",
            )
