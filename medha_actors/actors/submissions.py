"""What an ingress replica knows of its requests: no loss of the controller loses a token."""

from __future__ import annotations

import asyncio
import logging
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
