"""How fast long waits become rare: the rate that gamma-Boost weighs seconds of waiting with
(arXiv 2404.08826).

In an M/G/1 queue the share of those who wait longer than t falls as exp(-decay t), where the decay
is the positive root of

    arrivals per second * (E[exp(decay * work)] - 1) = decay

It is learned from the last arrivals: their rate and their work. The root exists below load 1 only,
and near 0 waits have no scale; so the load is taken to be between LOWEST_LOAD and HIGHEST_LOAD.
"""

from __future__ import annotations

import math
from collections import Counter, deque

WINDOW = 256  # arrivals that count
ENOUGH = 32  # with fewer there is no rate to speak of
USUAL_LOAD = 0.75  # which is assumed then
LOWEST_LOAD = 0.5
HIGHEST_LOAD = 0.95
BUCKETS_PER_OCTAVE = 4  # works are counted in buckets: a root costs as much as there are of them
FIRST_PER_S = 1 / 30  # before anybody has come
STEPS = 60  # of Newton's method, which needs about 6


class Decay:
    """The decay of the waits under the load of the last arrivals. `per_s` moves in steps: a queue
    that is sorted by it need not be sorted anew at each arrival."""

    def __init__(self, given_per_s: float | None = None) -> None:
        self.per_s = given_per_s or FIRST_PER_S
        self._given = given_per_s is not None
        self._arrivals = deque[tuple[float, float]](maxlen=WINDOW)  # instant, work
        self._count = 0

    def arrived(self, at: float, work_s: float) -> bool:
        """Count an arrival; whether `per_s` has changed."""
        if self._given or work_s <= 0:
            return False
        self._arrivals.append((at, work_s))
        self._count += 1
        # at 1, 2, 4 ... and then at each 32nd
        if self._count % ENOUGH and self._count & (self._count - 1):
            return False
        before = self.per_s
        self.per_s = root_per_s([work for _, work in self._arrivals], self._load())
        return self.per_s != before

    def _load(self) -> float:
        """Seconds of work that come each second."""
        if len(self._arrivals) < ENOUGH:
            return USUAL_LOAD
        arrivals = sorted(self._arrivals)
        over_s = arrivals[-1][0] - arrivals[0][0]
        work_s = sum(work for _, work in arrivals[:-1])
        return work_s / over_s if over_s > 0 else HIGHEST_LOAD


def root_per_s(works: list[float], load: float) -> float:
    """The decay for requests with these seconds of work, all equally frequent, at a load."""
    load = min(max(load, LOWEST_LOAD), HIGHEST_LOAD)
    buckets = Counter(round(math.log2(work) * BUCKETS_PER_OCTAVE) for work in works)
    counted = [
        (math.pow(2.0, bucket / BUCKETS_PER_OCTAVE), count / len(works))
        for bucket, count in buckets.items()
    ]
    mean = sum(share * work for work, share in counted)
    square = sum(share * work * work for work, share in counted)
    rate = load / mean
    # exp(x) >= 1 + x + x^2 / 2, so the root is not above this; the function is convex, so Newton's
    # method comes down to the root from there and never passes it
    decay = 2 * (1 - load) * mean / (load * square)
    for _ in range(STEPS):
        grown = [(work, share * math.exp(decay * work)) for work, share in counted]
        value = rate * (sum(part for _, part in grown) - 1.0) - decay
        slope = rate * sum(work * part for work, part in grown) - 1.0
        step = value / slope
        decay -= step
        if abs(step) <= 1e-6 * decay:
            break
    return decay
