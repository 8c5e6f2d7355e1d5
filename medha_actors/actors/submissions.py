"""What an ingress replica knows of its requests: no loss of the controller loses a token."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from medha_actors.messages import (
    Event,
    FinishedEvent,
    PromptLogprobsEvent,
    Request,
    Resumed,
    TokenEvent,
    pack_tokens,
)

_log = logging.getLogger("medha.engine")


class Submission:
    """One request from its submission to its last event. `losses`: engines lost in a row with this
    request in them and nothing heard of it in between."""

    def __init__(self, request: Request, receive: Callable[[Event], None]) -> None:
        self.request = request
        self.ended = False  # its receiver hears nothing more
        self.broken = False  # its receiver failed
        self.accepted = False  # whoever submitted it first has had its answer
        self.delivered = False  # the engine of now has it
        self.heard = asyncio.Event()  # of since the last loss
        self.losses = 0
        self._receive = receive
        # What came before whoever submitted it knows the answer; None: he does.
        self._early: list[Event] | None = []
        known = request.resumed or Resumed(token_ids=b"")
        self._token_ids = bytearray(known.token_ids)
        self._first_token_at = known.first_token_at
        self._prompt_logprobs_until = known.prompt_logprobs_until

    def put(self, event: Event) -> None:
        """Something happened to it."""
        self.losses = 0
        self.heard.set()
        if isinstance(event, TokenEvent):
            self._token_ids += pack_tokens((event.token_id,))
            if self._first_token_at is None:
                self._first_token_at = event.at
        elif isinstance(event, PromptLogprobsEvent):
            self._prompt_logprobs_until = event.start + 1 + len(event.entries)
        if self._early is None:
            self._tell(event)
        else:
            self._early.append(event)

    def begin(self) -> None:
        """Its answer is known: tell what came before that, and from now on at once."""
        early = self._early or []
        self._early = None
        for event in early:
            self._tell(event)

    def _tell(self, event: Event) -> None:
        """A receiver that fails ends its own request, and nobody else's."""
        if self.ended:
            return
        self.ended = isinstance(event, FinishedEvent)
        try:
            self._receive(event)
        except Exception:
            _log.exception("the receiver of %s failed", self.request.id)
            self.ended = True
            self.broken = True

    def lose(self) -> None:
        """The engine is gone, and what it knew of the request."""
        if self.delivered:
            self.losses += 1
        self.delivered = False
        self.heard.clear()

    def again(self) -> Request:
        """The request for another engine, from its known tokens."""
        known = Resumed(
            token_ids=bytes(self._token_ids),
            first_token_at=self._first_token_at,
            prompt_logprobs_until=self._prompt_logprobs_until,
        )
        return msgspec.structs.replace(self.request, resumed=known)

    def failed(
        self, message: str, now: float, retry_after_s: float | None = None
    ) -> FinishedEvent:
        """Its end when no engine can go on with it."""
        return FinishedEvent(
            request_id=self.request.id,
            reason="error",
            message=message,
            retry_after_s=retry_after_s,
            finished_at=now,
        )


class Submissions:
    """The requests of a replica that have not ended. `on_trial`: a suspect that is alone in the
    engine of now, until it has shown to be harmless."""

    def __init__(self, stop_there: Callable[[Submission], None]) -> None:
        """`stop_there`: called for those whose receiver failed: the engine need not go on."""
        self._stop_there = stop_there
        self._by_id: dict[str, Submission] = {}
        self.on_trial: Submission | None = None

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._by_id

    def add(self, submission: Submission) -> None:
        """One more."""
        self._by_id[submission.request.id] = submission

    def pop(self, request_id: str) -> Submission | None:
        """Take one out; None: it is not here."""
        return self._by_id.pop(request_id, None)

    def waiting(self) -> list[Submission]:
        """Those of before that the engine of now does not have yet."""
        return [
            submission
            for submission in self._by_id.values()
            if submission.accepted and not submission.delivered
        ]

    def begin(self, submission: Submission) -> None:
        """Whoever submitted it has its answer by now."""
        submission.begin()
        if submission.ended:
            self._let_go(submission)

    def tell(self, event: Event) -> None:
        """Something happened to one of them, or to one that is here no more."""
        submission = self._by_id.get(event.request_id)
        if submission is not None:
            self._put(submission, event)

    def end(
        self, submission: Submission, message: str, retry_after_s: float | None = None
    ) -> None:
        """No engine can go on with it."""
        self._put(submission, submission.failed(message, time.time(), retry_after_s))

    def drop(self, message: str, retry_after_s: float) -> None:
        """Nobody will ever hear of an engine again: end those whose answer is known."""
        for submission in list(self._by_id.values()):
            submission.lose()
            if submission.accepted:  # the others learn it from `submit`
                self.end(submission, message, retry_after_s)

    def release(self) -> list[Submission]:
        """Give up those whose answer is known, for another engine; forget the others."""
        live = [
            submission for submission in self._by_id.values() if submission.accepted
        ]
        self._by_id.clear()
        for submission in live:
            submission.lose()
        return live

    def lose(self, message: str) -> None:
        """Count who was in the engine that is gone; one that was there alone as a suspect ends,
        with this message."""
        suspect = self.on_trial
        self.on_trial = None
        for submission in self._by_id.values():
            submission.lose()
        if suspect is not None and suspect.request.id in self and suspect.losses:
            self.end(suspect, message)

    def _put(self, submission: Submission, event: Event) -> None:
        submission.put(event)
        if submission.ended:
            self._let_go(submission)

    def _let_go(self, submission: Submission) -> None:
        """It has heard its last event, or its receiver failed."""
        self._by_id.pop(submission.request.id, None)
        if submission.broken:
            self._stop_there(submission)
