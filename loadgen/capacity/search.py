"""The search: first the rate is doubled until the objectives fail (or halved until they hold), then
the gap is bisected, on a logarithmic scale, until it is narrower than the tolerance."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec

from loadgen.flags import flag


class SearchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the rate is searched for. Rates in requests per second."""

    start: Annotated[float, flag("first rate to try", name="--start-rate", gt=0)] = 1.0
    # the search ends when the lowest rate that fails is at most so much above the best
    tolerance: Annotated[
        float, flag("stop when the answer is known to this share", gt=0)
    ] = 0.05
    highest: Annotated[float, flag("never try more", name="--highest-rate", gt=0)] = (
        10_000.0
    )
    max_runs: Annotated[int, flag("rates to try at most", ge=1)] = 16


class Trial(msgspec.Struct, frozen=True):
    """One rate that was tried: the share of requests that met all objectives; valid unless the
    generator was late."""

    rate: float
    attainment: float  # of a trial that was cut short: at most
    holds: bool
    cut_short: bool = False
    doubtful: bool = False  # it failed, and the load generator was late itself
    figures: dict[str, Any] = msgspec.field(default_factory=dict)


class CapacityFound(msgspec.Struct, frozen=True):
    """The outcome: the best rate that held, and the lowest above it that did not. None: there was
    none."""

    best: float | None
    failed: float | None
    trials: list[Trial]
    complete: bool = True  # False: stopped before the tolerance was reached


class StopSearchError(Exception):
    """The search has to end with what it has."""


async def find_capacity(
    measure: Callable[[float], Awaitable[Trial]], search: SearchOptions
) -> CapacityFound:
    """Search with `measure(rate)`, which may raise StopSearchError."""
    trials: list[Trial] = []
    low: float | None = None
    high: float | None = None
    rate = search.start
    complete = True
    try:
        while len(trials) < search.max_runs:
            trial = await measure(rate)
            trials.append(trial)
            if trial.holds:
                low = rate
            else:
                high = rate
            if low is not None and low >= search.highest:
                break
            if (
                low is not None
                and high is not None
                and high <= low * (1 + search.tolerance)
            ):
                break
            if low is None and rate < search.start / 2**12:
                break
            rate = _next(low, high, search)
        else:
            complete = False
    except StopSearchError:
        complete = False
    return CapacityFound(low, high, trials, complete)


def _next(low: float | None, high: float | None, search: SearchOptions) -> float:
    if low is None:
        assert high is not None
        return high / 2
    if high is None:
        return min(low * 2, search.highest)
    return math.sqrt(low * high)
