"""Who stands before a request that has just come, at the instant when its last chunk goes: a
snapshot of the queue that a forecast asks several times.

A lane whose requests are served until they are no more urgent than others (`yields` in
core/orders.py) gives only what it gets until then.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import NamedTuple

TIE_S = 1e-5  # who is equal was there before


class Finish(NamedTuple):
    """The place of a request in the order at the end of its prefill."""

    priority: float
    width: float
    instant: float


class LaneView(NamedTuple):
    """Requests of equal priority and width, sorted by instant, what the first stage has to do for
    each, and the sums of that from 0.0 on."""

    priority: float
    width: float
    instants: Sequence[float]
    loads_s: Sequence[float]
    sums_s: Sequence[float]


class Standing:
    """`yields_s`: lanes this wide yield; infinite: none does."""

    def __init__(
        self, finish: Finish, lanes: Iterable[LaneView], yields_s: float
    ) -> None:
        self.finish = finish
        self._always_s = 0.0  # of those with a better priority
        self._always = 0
        self._lanes: list[LaneView] = []
        self._yielding: list[LaneView] = []
        self._longest_s: list[float] = []  # the longest load of each of these
        for lane in lanes:
            if lane.priority < finish.priority:
                self._always_s += lane.sums_s[-1]
                self._always += len(lane.instants)
            elif lane.priority == finish.priority:
                if lane.width >= yields_s and lane.width > finish.width:
                    self._yielding.append(lane)
                    self._longest_s.append(max(lane.loads_s))
                else:
                    self._lanes.append(lane)

    def before_s(self, at: float) -> float:
        """Seconds of the first stage that those before it get by then."""
        rank = (self.finish.instant - at) / self.finish.width
        before_s = self._always_s
        for lane in self._lanes:
            limit = at + rank * lane.width + TIE_S
            before_s += lane.sums_s[bisect_left(lane.instants, limit)]
        for lane, longest_s in zip(self._yielding, self._longest_s, strict=True):
            limit = at + rank * lane.width + TIE_S
            whole = bisect_left(lane.instants, limit - longest_s)
            before_s += lane.sums_s[whole]
            for place in range(whole, bisect_left(lane.instants, limit)):
                before_s += min(lane.loads_s[place], limit - lane.instants[place])
        return before_s

    def short_before_s(self, at: float, most_s: float) -> float:
        """The same of those alone who have no more than `most_s` left."""
        loads_s = list[float]()
        for lane, count in self._counts(at):
            loads_s += [load_s for load_s in lane.loads_s[:count] if load_s <= most_s]
        return self._always_s + sum(loads_s)

    def count_before(self, at: float) -> int:
        """How many they are."""
        return self._always + sum([count for _, count in self._counts(at)])

    def behind_s(self, at: float, most: int) -> list[float]:
        """What the first stage has to do for the next ones behind it, in each lane."""
        loads_s = list[float]()
        for lane, count in self._counts(at):
            loads_s += lane.loads_s[count : count + most]
        return loads_s

    def _counts(self, at: float) -> list[tuple[LaneView, int]]:
        rank = (self.finish.instant - at) / self.finish.width
        return [
            (lane, bisect_left(lane.instants, at + rank * lane.width + TIE_S))
            for lane in self._lanes + self._yielding
        ]
