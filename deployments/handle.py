"""What the HTTP server needs of an engine, and nothing more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from medha_actors.messages import Accepted, Event, Record, Rejected, Request


class EngineHandle(Protocol):
    """An engine as the HTTP server sees it. Any method may raise UnavailableError while the engine
    is rebuilt."""

    def events(self, request_id: str) -> AsyncIterator[Event]:
        """The request's events, in order, ending after its FinishedEvent. Registers at once, before
        `submit`."""
        ...

    async def submit(self, request: Request) -> Accepted | Rejected:
        """Hand the request to the scheduler."""
        ...

    async def cancel(self, request_id: str) -> None:
        """Stop the request and forget its registration; harmless for unknown ids and finished
        requests."""
        ...

    async def record(self, answer_id: str) -> Record | None:
        """What is known of an answer of this or another replica; None: nothing, or no longer. To go
        on with it, submit its request under a new id with `resumed`: from then on the request that
        wrote it before is ended, if it still ran."""
        ...

    def ready(self) -> bool:
        """Whether requests can be served now."""
        ...
