"""Flights: batches on their way through the stages, in the order in which they
left."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from medha_actors.core.batch import Batch
from medha_actors.messages import StepResult


class _Flight:
    def __init__(self, batch: Batch, sent_at: float) -> None:
        self.batch = batch
        self.sent_at = sent_at
        self.waiting_for = {
            group for group, message in enumerate(batch.groups) if message is not None
        }
        self.results: list[StepResult] = []


class Flights:
    """A batch has landed when every group that had a part in it has sent its result; batches land
    in order.

    `busy_s`: seconds of work of each stage so far (the slowest group counts); `done`: batches
    landed.
    """

    def __init__(self, stages: int) -> None:
        self._flights: deque[_Flight] = deque()
        self.busy_s = [0.0] * stages
        self.done = 0

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def oldest_at(self) -> float | None:
        """When the oldest batch in flight was sent."""
        return self._flights[0].sent_at if self._flights else None

    def add(self, batch: Batch, now: float) -> set[int]:
        """A batch leaves; returns the groups it goes to."""
        flight = _Flight(batch, now)
        self._flights.append(flight)
        return set(flight.waiting_for)

    def take(self, result: StepResult) -> Iterator[list[StepResult]]:
        """One group's result; yields the results of every batch that has now landed."""
        flight = next(
            flight for flight in self._flights if flight.batch.id == result.batch_id
        )
        flight.results.append(result)
        flight.waiting_for.discard(result.group)
        while self._flights and not self._flights[0].waiting_for:
            results = self._flights.popleft().results
            slowest = [
                max(seconds)
                for seconds in zip(*(r.stage_seconds for r in results), strict=True)
            ]
            self.busy_s = [
                busy + seconds
                for busy, seconds in zip(self.busy_s, slowest, strict=True)
            ]
            self.done += 1
            yield results

    def clear(self) -> None:
        """All batches are lost."""
        self._flights.clear()
