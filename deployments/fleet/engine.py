"""FleetEngine: several grids as one engine (deployments.handle.EngineHandle).

Who gets a request is decided elsewhere (`pick`); here it goes there, and where that grid refuses it
or is away just then, to the next. The requests of a grid that is gone for good, or that has to go
before they are done, go on in others from their known tokens.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Final, Protocol

from deployments.handle import EngineHandle
from medha_actors.errors import MedhaError, UnavailableError
from medha_actors.fleet.views import Ask, ask_of
from medha_actors.messages import Accepted, Event, FinishedEvent, Rejected, Request
from medha_actors.record import Record

_log = logging.getLogger("medha.fleet")
_RETRY_AFTER_S: Final = 5.0
_FULL: Final = 429
_ELSEWHERE: Final = (_FULL, 503)  # refusals that another grid may not repeat
# grids that are asked in an overload: where it would be first is first
_MOST_FULL: Final = 3
_RECORDS: Final = 1024  # answers whose grid is remembered

# The grid for a request, not one of those; None: there is none.
Pick = Callable[[Ask, Collection[str]], Awaitable[str | None]]


class GridEngine(EngineHandle, Protocol):
    """An engine that is one of several: RayEngine."""

    def release(self) -> list[Any]: ...

    async def adopt(self, submission: Any) -> None: ...

    async def drain(self, timeout_s: float) -> int: ...

    async def stop(self) -> None: ...


class FleetEngine:
    """`grids`: those that are there, by name."""

    def __init__(self, pick: Pick, cache_name: str | None, page_tokens: int) -> None:
        """`cache_name`, `page_tokens`: of the configuration that all grids have."""
        self.grids: dict[str, GridEngine] = {}
        self._pick = pick
        self._cache_name = cache_name
        self._page_tokens = page_tokens
        self._owners: dict[str, GridEngine] = {}  # of requests
        self._recorded: OrderedDict[str, str] = OrderedDict()  # answer: grid
        self._tasks: set[asyncio.Task[None]] = set()

    # ---------------------------------------------------------------- grids

    def join(self, name: str, grid: GridEngine) -> None:
        """A grid is there."""
        self.grids[name] = grid

    def leave(self, name: str) -> None:
        """A grid takes no part any more. What is live there ends there while it drains, else it
        goes on elsewhere (`lost`)."""
        self.grids.pop(name, None)

    async def lost(self, name: str, grid: GridEngine) -> None:
        """A grid is gone for good, or is not waited for any longer, with requests in it."""
        self.leave(name)
        for submission in grid.release():
            task = asyncio.create_task(self._go_on(submission))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _go_on(self, submission: Any) -> None:
        """With a request that no grid has any more."""
        request = submission.request
        asked = ask_of(request, self._cache_name, self._page_tokens)
        tried: set[str] = set()
        while (name := await self._choose(asked, tried)) is not None:
            tried.add(name)
            grid = self._owners[request.id] = self.grids[name]
            try:
                await grid.adopt(submission)
            except MedhaError as error:
                _log.warning(
                    "grid %s does not go on with a request: %s", name, error.message
                )
                continue
            return
        self._owners.pop(request.id, None)
        submission.put(
            submission.failed("no grid is left", time.time(), _RETRY_AFTER_S)
        )

    # ---------------------------------------------------------------- EngineHandle

    async def submit(
        self, request: Request, receive: Callable[[Event], None]
    ) -> Accepted | Rejected:
        """See EngineHandle."""
        ask = ask_of(request, self._cache_name, self._page_tokens)
        tried: set[str] = set()
        refusals: list[Rejected] = []
        failure: UnavailableError | None = None
        while [one.status for one in refusals].count(_FULL) < _MOST_FULL:
            name = self._former(request, tried) or await self._choose(ask, tried)
            if name is None:
                break
            tried.add(name)
            try:
                answer = await self._submit_to(self.grids[name], request, receive)
            except UnavailableError as error:
                failure = error
                continue
            if isinstance(answer, Rejected) and answer.status in _ELSEWHERE:
                refusals.append(answer)
                continue
            return answer
        if refusals:
            return min(refusals, key=_retry_after_s)
        raise failure or UnavailableError(
            "no grid is there", retry_after_s=_RETRY_AFTER_S
        )

    async def _submit_to(
        self, grid: GridEngine, request: Request, receive: Callable[[Event], None]
    ) -> Accepted | Rejected:
        def received(event: Event) -> None:
            if isinstance(event, FinishedEvent):
                self._owners.pop(request.id, None)
            receive(event)

        self._owners[request.id] = grid
        try:
            answer = await grid.submit(request, received)
        except BaseException:
            self._owners.pop(request.id, None)
            raise
        if isinstance(answer, Rejected):
            self._owners.pop(request.id, None)
        return answer

    async def cancel(self, request_id: str) -> None:
        """See EngineHandle."""
        grid = self._owners.pop(request_id, None)
        if grid is not None:
            await grid.cancel(request_id)

    async def record(self, answer_id: str) -> Record | None:
        """See EngineHandle: whichever grid knows the answer."""
        grids = dict(self.grids)
        calls = [grid.record(answer_id) for grid in grids.values()]
        found = await asyncio.gather(*calls, return_exceptions=True)
        for name, record in zip(grids, found, strict=True):
            if isinstance(record, Record):
                self._recorded[answer_id] = name
                while len(self._recorded) > _RECORDS:
                    self._recorded.popitem(last=False)
                return record
        failures = [one for one in found if isinstance(one, BaseException)]
        if failures and len(failures) == len(found):
            raise failures[0]
        return None

    def ready(self) -> bool:
        """See EngineHandle."""
        return any(grid.ready() for grid in self.grids.values())

    # ---------------------------------------------------------------- the end

    async def drain(self, timeout_s: float) -> int:
        """All grids finish what they have; returns how many requests were not finished."""
        calls = [grid.drain(timeout_s) for grid in self.grids.values()]
        return sum(await asyncio.gather(*calls))

    async def stop(self) -> None:
        """Let go of all grids."""
        await asyncio.gather(*[grid.stop() for grid in self.grids.values()])

    # ---------------------------------------------------------------- choice

    def _former(self, request: Request, tried: set[str]) -> str | None:
        """The grid that has an answer's record gets the request that goes on with it, and so ends
        the one before."""
        if request.resumed is None or request.answer_id is None or tried:
            return None
        name = self._recorded.get(request.answer_id)
        return name if name in self.grids else None

    async def _choose(self, ask: Ask, tried: set[str]) -> str | None:
        """Grids that are away now come last."""
        away = {name for name, grid in self.grids.items() if not grid.ready()}
        for left_out in (tried | away, tried):
            name = await self._pick(ask, left_out)
            if name is not None and name in self.grids and name not in tried:
                return name
        return None


def _retry_after_s(refusal: Rejected) -> float:
    return refusal.retry_after_s or _RETRY_AFTER_S
