"""How many grids there should be.

More, when accepted work is predicted to be late: enough to do what is late within catch_up_s. And
as many as keep the mean load at its target: load is the share of a grid's time that is filled, by
what has arrived. Fewer only after a while without either, one at a time: the one that leaves drains
first, so that nothing is lost.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import msgspec

from medha_actors.fleet.notices import Notice
from medha_actors.fleet_config import ScalingConfig


class GridLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What of a grid's notice counts here."""

    load: float
    queued: int
    late: int
    late_s: float


def load_of(notice: Notice) -> GridLoad:
    """From a notice."""
    return GridLoad(
        load=notice.load, queued=notice.queued, late=notice.late, late_s=notice.late_s
    )


class Scaling:
    """One fleet's. `decide` is called now and then with the grids that take requests."""

    def __init__(self, settings: ScalingConfig) -> None:
        self._settings = settings
        self._totals: deque[tuple[float, float]] = (
            deque()
        )  # instant, load of all grids together
        self._up_since: float | None = None
        self._down_since: float | None = None

    def decide(self, grids: Sequence[GridLoad], target: int, now: float) -> int:
        """How many grids there are to be; `target`: how many there were to be until now (some may
        still be starting)."""
        settings = self._settings
        wanted = self._wanted(grids, now)
        if wanted > target:
            self._down_since = None
            if self._up_since is None:
                self._up_since = now
            if now - self._up_since >= settings.up_after_s:
                self._up_since = None
                target = wanted
        elif wanted < target:
            self._up_since = None
            if self._down_since is None:
                self._down_since = now
            if now - self._down_since >= settings.down_after_s:
                self._down_since = now - settings.down_after_s / 2
                target -= 1
        else:
            self._up_since = None
            self._down_since = None
        return max(settings.min_grids, min(settings.max_grids, target))

    def _wanted(self, grids: Sequence[GridLoad], now: float) -> int:
        settings = self._settings
        self._totals.append((now, sum([grid.load for grid in grids])))
        while self._totals[0][0] < now - settings.window_s:
            self._totals.popleft()
        mean = sum([load for _, load in self._totals]) / len(self._totals)
        wanted = math.ceil(mean / settings.target_load)
        queued = sum([grid.queued for grid in grids])
        late = sum([grid.late for grid in grids])
        if late > settings.late_share * queued:
            late_s = sum([grid.late_s for grid in grids])
            missing = max(1, math.ceil(late_s / settings.catch_up_s))
            wanted = max(wanted, len(grids) + missing)
        return max(settings.min_grids, min(settings.max_grids, wanted))
