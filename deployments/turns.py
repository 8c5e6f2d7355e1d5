"""Turns: one thread for long work in parts, shared fairly.

Start-time fair queueing: a turn is due at the virtual time its owner has reached, which grows by
the sizes of the owner's turns. A newcomer begins at the virtual time of the turn being served.
So everybody advances at the same speed, and nobody waits for more than one turn of each other.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class Owner:
    """Whose turns these are, and where it stands in virtual time (in units of work)."""

    reached: float = 0.0


@dataclass(slots=True, order=True)
class _Turn:
    due: float
    number: int
    work: Callable[[], Any] = field(compare=False)
    result: asyncio.Future[Any] = field(compare=False)


class Turns:
    """Must be used from one event loop."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._waiting: list[_Turn] = []
        self._numbers = itertools.count()
        self._now = 0.0
        self._serving: asyncio.Task[None] | None = None

    async def run(self, owner: Owner, size: int, work: Callable[[], T]) -> T:
        """What `work` returns, in the thread, when its turn has come. A caller that is cancelled
        gives up its turn."""
        loop = asyncio.get_running_loop()
        due = max(self._now, owner.reached)
        owner.reached = due + size
        result: asyncio.Future[T] = loop.create_future()
        heapq.heappush(self._waiting, _Turn(due, next(self._numbers), work, result))
        if self._serving is None:
            self._serving = loop.create_task(self._serve())
        return await result

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                turn = heapq.heappop(self._waiting)
                if turn.result.done():  # its caller has gone
                    continue
                self._now = turn.due
                try:
                    value = await loop.run_in_executor(self._thread, turn.work)
                except Exception as error:
                    if not turn.result.done():
                        turn.result.set_exception(error)
                else:
                    if not turn.result.done():
                        turn.result.set_result(value)
        finally:
            self._serving = None
