"""What the HTTP server needs of an engine, and nothing more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from medha_actors.messages import Accepted, Event, Rejected, Request


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

    def ready(self) -> bool:
        """Whether requests can be served now."""
        ...
