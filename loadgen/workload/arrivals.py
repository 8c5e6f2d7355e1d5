"""When requests arrive. Intervals are drawn for a rate of 1/s and then divided by the rate.

So two runs with one seed see the same pattern at every rate, and nothing is clipped: a Poisson
process has long pauses and dense bursts, and both are kept.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import accumulate, repeat

from loadgen.errors import LoadgenError

KINDS = ("poisson", "gamma", "fixed")


def arrival_times(
    rate: float,
    seed: int,
    *,
    kind: str = "poisson",
    burstiness: float = 1.0,
    ramp_up_s: float = 0.0,
) -> Iterator[float]:
    """Endless, rising instants in seconds after the start; `rate` in requests per second, `inf` for
    all at once.

    `burstiness` is the shape of the gamma distribution, as in vLLM: 1 is Poisson, less is burstier.
    During the first `ramp_up_s` seconds the rate climbs from nothing.
    """
    if not rate > 0 or not burstiness > 0 or not math.isfinite(burstiness):
        raise LoadgenError("--request-rate and --burstiness must be above 0")
    if math.isinf(rate):
        return repeat(0.0)
    return (
        _ramped(units, rate, ramp_up_s)
        for units in accumulate(_intervals(seed, kind, burstiness))
    )


def _intervals(seed: int, kind: str, burstiness: float) -> Iterator[float]:
    rng = random.Random(f"{seed}/arrivals")
    while True:
        if kind == "fixed":
            yield 1.0
        elif kind == "poisson" or burstiness == 1.0:
            yield rng.expovariate(1.0)
        else:
            yield rng.gammavariate(burstiness, 1.0 / burstiness)


def _ramped(units: float, rate: float, ramp_up_s: float) -> float:
    """The instant by which `units` requests are expected: the integral of the rate, turned
    round."""
    if ramp_up_s <= 0:
        return units / rate
    if units < rate * ramp_up_s / 2:
        return math.sqrt(2 * units * ramp_up_s / rate)
    return units / rate + ramp_up_s / 2
