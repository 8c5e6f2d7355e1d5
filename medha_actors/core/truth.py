"""What forecasts of one kind are multiplied by, so that they come true: learned from what came of
the last ones.

An announcement is true if the first token comes within BAND of it, early or late; that it is late
costs a client more, LATE_COSTS times as much. Of a few factors, each a STEP above the one before,
the best is that under which the last forecasts would have cost least, and of several such the one
that is nearest to their median. The factor moves towards it by one step a forecast, so no single
one counts for much.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable

BAND = 1.25
LATE_COSTS = 5
STEP = 1.02
FACTORS = tuple(STEP**place for place in range(-18, 21))  # 0.7 to 1.49
# what is taken to have come of forecasts beside others before any: the order of arrivals
# within a few milliseconds is luck, and it is worse to have bad luck than good to have good
BESIDE = (0.88, 0.92, 0.94, 0.96, 0.98, 1.0, 1.04, 1.3)
ALONE = (1.0,) * 8


class Truth:
    """Of forecasts of one kind; ratios are of what came to what was forecast."""

    def __init__(self, before: Iterable[float], window: int) -> None:
        """`before`: what is taken to have come of forecasts before the first; `window`: how many
        count."""
        self._window = window
        self._ratios = deque[float]()
        self._ranked = list[float]()
        self._costs = [0] * len(FACTORS)
        for ratio in before:
            self._enter(ratio)
        self._place = self._best() if self._ratios else bisect_left(FACTORS, 1.0)

    @property
    def factor(self) -> float:
        """What to multiply a forecast by."""
        return FACTORS[self._place]

    def came_true(self, ratio: float) -> None:
        """A first token is there."""
        self._enter(ratio)
        if len(self._ratios) > self._window:
            gone = self._ratios.popleft()
            del self._ranked[bisect_left(self._ranked, gone)]
            self._count(gone, -1)
        best = self._best()
        self._place += (best > self._place) - (best < self._place)

    def _enter(self, ratio: float) -> None:
        self._ratios.append(ratio)
        insort(self._ranked, ratio)
        self._count(ratio, 1)

    def _count(self, ratio: float, sign: int) -> None:
        """Add what it costs under each factor, or take it away."""
        costs = self._costs
        for place in range(bisect_left(FACTORS, ratio / BAND)):
            costs[place] += sign * LATE_COSTS
        for place in range(bisect_right(FACTORS, ratio * BAND), len(FACTORS)):
            costs[place] += sign

    def _best(self) -> int:
        """The place of the cheapest factor."""
        least = min(self._costs)
        middle = bisect_left(FACTORS, self._ranked[len(self._ranked) // 2])
        places = [place for place, cost in enumerate(self._costs) if cost == least]
        return min(places, key=lambda place: abs(place - middle))
