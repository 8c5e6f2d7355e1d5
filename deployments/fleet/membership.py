"""Membership: which grids an ingress replica is attached to, as Serve starts and ends them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, Protocol

from deployments.fleet.engine import FleetEngine, GridEngine
from deployments.fleet.seat import Members, Seat
from medha_actors.errors import MedhaError
from medha_actors.fleet.notices import Notice

_log = logging.getLogger("medha.fleet")
_LOOK_S: Final = 0.5
_RETRY_S: Final = 2.0


class Attached(GridEngine, Protocol):
    """An engine that is attached to its grid: RayEngine."""

    async def start(self) -> None: ...

    @property
    def live(self) -> int: ...

    @property
    def attached(self) -> bool: ...


# From a controller's name, and what is to be called with its grid's notices.
Open = Callable[[str, Callable[[Notice], None]], Attached]


class Membership:
    """`fleet` has the grids that are attached. Serve says who is there in a thread of its own."""

    def __init__(
        self,
        fleet: FleetEngine,
        seat: Seat,
        edition: str,
        hand_over_s: float,
        open_grid: Open,
    ) -> None:
        """`edition`: of the grids that this replica can use (seat.py); `hand_over_s`: what is not
        done in a grid so long after it has been taken out goes on in others."""
        self._fleet = fleet
        self._seat = seat
        self._edition = edition
        self._hand_over_s = hand_over_s
        self._open = open_grid
        self._members: Members = {}
        self._known: dict[str, Attached] = {}  # also those that are not attached yet
        self._loop: asyncio.AbstractEventLoop | None = None
        self._first: asyncio.Future[Attached] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> Attached:
        """Wait for the first grid, and return it."""
        self._loop = asyncio.get_running_loop()
        self._first = self._loop.create_future()
        self._seat.watch(self._edition, self._changed)
        return await self._first

    def _changed(self, members: Members) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._update, dict(members))

    def _update(self, members: Members) -> None:
        self._members = members
        for name in members.keys() - self._known.keys():
            grid = self._open(members[name].controller, partial(self._heard, name))
            self._known[name] = grid
            self._spawn(self._join(name, grid))
        for name in self._known.keys() - members.keys():
            self._spawn(self._leave(name, self._known.pop(name)))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _heard(self, name: str, notice: Notice) -> None:
        # one that drains is chosen no more, whatever it tells
        if name in self._members and not self._seat.heard(name, notice):
            _log.error("a notice of grid %s is missing: it gets no requests", name)

    async def _join(self, name: str, grid: Attached) -> None:
        """Attach, however long it takes, while Serve says that it is there."""
        while name in self._members:
            try:
                await grid.start()
            except MedhaError as error:
                _log.error("grid %s cannot be reached: %s", name, error.message)
                await asyncio.sleep(_RETRY_S)
                continue
            self._fleet.join(name, grid)
            if self._first is not None and not self._first.done():
                self._first.set_result(grid)
            return

    async def _leave(self, name: str, grid: Attached) -> None:
        """Serve has taken it out: it drains, and what is live there ends there, but for what takes
        too long, which goes on in others; or it has died."""
        self._fleet.leave(name)
        until = time.monotonic() + self._hand_over_s
        while grid.live:
            if not grid.attached or time.monotonic() >= until:
                await self._fleet.lost(name, grid)
                return
            await asyncio.sleep(_LOOK_S)
        await grid.stop()
