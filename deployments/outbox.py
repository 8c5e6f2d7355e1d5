"""What waits to be sent on one connection: bounded, however slowly the client reads."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from medha_actors.errors import MedhaError
from medha_actors.messages import (
    FinishedEvent,
    ProgressEvent,
    PromptLogprobsEvent,
    TokenEvent,
)


@dataclass(slots=True)
class Addition:
    """What one choice has to say next: normally one token; several for a slow reader."""

    index: int
    text: str = ""
    # kept only where log-probabilities are wanted
    tokens: list[TokenEvent] = field(default_factory=list)
    # where each of `tokens` starts in the text
    starts: list[int] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprobsEvent] = field(default_factory=list)
    generated: int = 0  # tokens of this choice so far
    # epoch seconds; set on the addition with the first token
    first_token_at: float | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    ending: FinishedEvent | None = None

    def absorb(self, later: Addition) -> None:
        self.text += later.text
        self.tokens += later.tokens
        self.starts += later.starts
        self.prompt_logprobs += later.prompt_logprobs
        self.generated = later.generated
        self.first_token_at = self.first_token_at or later.first_token_at
        self.finish_reason = later.finish_reason
        self.stop_reason = later.stop_reason
        self.ending = later.ending


Item = Addition | ProgressEvent | MedhaError


class Outbox:
    """One token is one Addition until `limit` of them wait; then new text joins what its choice has
    waiting."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[Addition | MedhaError] = deque()
        self._last: dict[
            int, Addition
        ] = {}  # the newest waiting addition of every choice
        self._progress: ProgressEvent | None = None  # only the latest is worth sending
        self._waiter: asyncio.Future[None] | None = None

    def put(self, addition: Addition) -> None:
        """Never blocks. An ending joins the choice's last token if that is still here."""
        last = self._last.get(addition.index)
        ending_only = (
            addition.finish_reason is not None
            and last is not None
            and addition.generated == last.generated
        )
        if last is not None and (ending_only or len(self._items) >= self._limit):
            last.absorb(addition)
        else:
            self._items.append(addition)
            self._last[addition.index] = addition
        self._progress = None
        self._wake()

    def put_progress(self, event: ProgressEvent) -> None:
        self._progress = event
        self._wake()

    def fail(self, error: MedhaError) -> None:
        self._items.append(error)
        self._wake()

    async def take(self, timeout_s: float) -> list[Item]:
        """All that waits; after `timeout_s` of silence, nothing."""
        if not self._items and self._progress is None:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(timeout_s, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        items: list[Item] = [] if self._progress is None else [self._progress]
        items += self._items
        self._items.clear()
        self._last.clear()
        self._progress = None
        return items

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
