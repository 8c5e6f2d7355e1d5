"""Announcer: a grid that is one of several tells the ingress replicas of itself, with the events
that they read anyway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from medha_actors.actors.doors import crash_only_task
from medha_actors.actors.sinks import Sinks
from medha_actors.config import MedhaConfig
from medha_actors.core.scheduler import Scheduler
from medha_actors.fleet.herald import Herald
from medha_actors.fleet.notices import Notice


class Announcer:
    """Once in a period (fleet.routing.period_s)."""

    def __init__(
        self,
        config: MedhaConfig,
        scheduler: Scheduler,
        sinks: Sinks,
        now: Callable[[], float],
    ) -> None:
        self.last: Notice | None = None  # without its pages
        self._herald = Herald(scheduler, config.scheduler.max_running_requests)
        self._period_s = config.fleet.routing.period_s
        self._sinks = sinks
        self._now = now
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """From now on, until the process ends."""
        self._task = crash_only_task(self._announce())

    def drain(self) -> None:
        """The grid takes no new requests any more."""
        self._herald.draining = True
        self.announce()

    def announce(self) -> None:
        """The next notice."""
        now = self._now()
        notice = self._herald.tell(now)
        self.last = msgspec.structs.replace(notice, came=b"", gone=b"")
        self._sinks.announce(notice, lambda: self._herald.whole(now))

    async def _announce(self) -> None:
        while True:
            self.announce()
            await asyncio.sleep(self._period_s)
