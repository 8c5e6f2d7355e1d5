"""What the HTTP server needs of an engine, and nothing more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from medha_actors.messages import Accepted, Event, Rejected, Request
from medha_actors.record import Record


class EngineHandle(Protocol):
    """An engine as the HTTP server sees it. Any method may raise UnavailableError while the engine
    is rebuilt. tests/engine_contract.py checks what is promised here."""

    async def submit(
        self, request: Request, receive: Callable[[Event], None]
    ) -> Accepted | Rejected:
        """Hand the request to the scheduler.

        Once it is accepted and this has returned, `receive` is called in the caller's event loop
        with each of its events, in order; the last one is a FinishedEvent, also when the engine
        stops or is lost for good. It must be quick. If it raises, the request is cancelled, and
        nobody else's.
        """
        ...

    async def cancel(self, request_id: str) -> None:
        """Stop the request, which hears nothing more; harmless for unknown ids and finished
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
