"""Whether a trial can still hold its objectives: one that cannot need not be sent to the end."""

from __future__ import annotations

import asyncio

from loadgen.judge.metrics import measure
from loadgen.judge.objectives import Objectives
from loadgen.records import PROBE, RequestRecord
from loadgen.send.driver import Driver
from loadgen.send.wire import clock

LOOK_S = 0.5


class Doubt:
    """Watches a trial and ends it as soon as more requests than allowed have missed their
    objectives."""

    def __init__(self, objectives: Objectives, allowed: int) -> None:
        self.objectives = objectives
        self.allowed = allowed
        self.bad = 0
        self._ended_badly = self._seen = 0
        self._pending: list[RequestRecord] = []

    async def watch(self, driver: Driver) -> None:
        while self.bad <= self.allowed:
            await asyncio.sleep(LOOK_S)
            self.look(driver, clock())

    def look(self, driver: Driver, now: float) -> None:
        """Count requests that ended badly, and those under way that are past an objective
        already."""
        new = driver.records[self._seen :]
        self._seen += len(new)
        pending = self._pending + [record for record in new if record.kind != PROBE]
        self._pending = [record for record in pending if record.ended_at is None]
        ended = [record for record in pending if record.ended_at is not None]
        self._ended_badly += sum(
            measure(record, self.objectives).good is False for record in ended
        )
        self.bad = self._ended_badly + sum(
            self._overdue(record, now) for record in self._pending
        )

    def _overdue(self, record: RequestRecord, now: float) -> bool:
        if record.sent_at is None:
            return False
        limits = self.objectives.limits(record)
        first = record.token_times[0] if len(record.token_times) else now
        late = "ttft" in limits and first - record.sent_at > limits["ttft"]
        return late or ("e2el" in limits and now - record.sent_at > limits["e2el"])
