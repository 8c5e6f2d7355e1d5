"""Held: requests that wait in a proxy of Ray Serve for an application that will never come.

Serve's proxy keeps a request until a replica takes it, for ever where no application could be
started. Where there is no launcher to end such a server, they are told so here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from deployments import starting

PATIENCE_S: Final = 2.0  # until it is asked why nobody answers
_LOOK_S: Final = 5.0


class Answer(Protocol):
    """Whether a request has begun to be answered."""

    started: bool


class Held:
    """The requests of one server that nobody has begun to answer for a while."""

    def __init__(self, is_hopeless: Callable[[], Awaitable[bool]]) -> None:
        """`is_hopeless`: whether nobody ever will."""
        self._is_hopeless = is_hopeless
        self._waiting: dict[asyncio.Timeout, Answer] = {}
        self._watch: asyncio.Task[None] | None = None

    def add(self, limit: asyncio.Timeout, answer: Answer) -> None:
        """`limit` expires once there is no hope for an answer that has not begun."""
        if answer.started:
            return
        self._waiting[limit] = answer
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look())

    def leave(self, limit: asyncio.Timeout) -> None:
        """It waits no longer."""
        self._waiting.pop(limit, None)

    async def _look(self) -> None:
        while self._still_waiting():
            if await self._is_hopeless():
                now = asyncio.get_running_loop().time()
                for limit in self._still_waiting():
                    self.leave(limit)
                    limit.reschedule(now)
                return
            await asyncio.sleep(_LOOK_S)

    def _still_waiting(self) -> list[asyncio.Timeout]:
        for limit, answer in list(self._waiting.items()):
            if answer.started:
                self.leave(limit)
        return list(self._waiting)


async def nobody_will_serve() -> bool:
    """Whether all applications have failed to start, as Serve says; asked in a proxy only, since
    whoever waits in a replica waits for its engine."""
    try:
        serve.get_replica_context()
    except RayServeException:
        return await asyncio.to_thread(_all_failed)
    return False


def _all_failed() -> bool:
    try:
        applications = serve.status().applications
    except (RayError, RayServeException, TimeoutError):
        return False
    runs = [starting.has_replica(one) for one in applications.values()]
    return bool(starting.failures(applications)) and not any(runs)
