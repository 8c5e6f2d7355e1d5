"""How fast long waits become rare: the rate that gamma-Boost weighs seconds of waiting with
(arXiv 2404.08826).

In an M/G/1 queue the share of those who wait longer than t falls as exp(-decay t), where the decay
is the positive root of

    arrivals per second * (E[exp(decay * work)] - 1) = decay

The distribution of the work is learned from the last arrivals. The load is not: seconds of idle
prefill understate it, by what decodes and short batches add (1.1 to 1.8 times), and with a decay
for light load everything longer than its inverse is served in the order of arrival, short requests
behind it. So the load is taken to be heavy; and where more is waiting than that accounts for, the
decay is no more than one over the seconds of work that wait.

It is never less than one over `longest_s`, however much waits: so the boosts of two works differ by
no more than longest_s * ln(longer / shorter), whatever is learned, and nobody starves.
"""

from __future__ import annotations

import math
from collections import Counter, deque

HEAVY_LOAD = 0.95
WINDOW = 256  # arrivals that count
EACH = 32  # a root is found for so many new ones, and at the 1st, 2nd, 4th ...
# works are counted in buckets: a root costs as much as there are of them
BUCKETS_PER_OCTAVE = 4
FIRST_PER_S = 1 / 30  # before anybody has come
STEPS = 60  # of Newton's method, which needs about 6
STEP = 1.25  # the queue is sorted anew when the decay has moved this far


class Decay:
    """`per_s` moves in steps, for a queue that is sorted by it."""

    def __init__(
        self, given_per_s: float | None = None, longest_s: float = math.inf
    ) -> None:
        """`given_per_s`: it is not learned; `longest_s`: of what is learned, one over the least."""
        self.per_s = given_per_s or max(FIRST_PER_S, 1 / longest_s)
        self._given = given_per_s is not None
        self._least_per_s = 1 / longest_s
        self._root_per_s = FIRST_PER_S
        self._works = deque[float](maxlen=WINDOW)
        self._count = 0

    def arrived(self, work_s: float, backlog_s: float) -> bool:
        """Count an arrival that finds so much work; whether `per_s` has changed."""
        if self._given or work_s <= 0:
            return False
        self._works.append(work_s)
        self._count += 1
        if not self._count % EACH or not self._count & (self._count - 1):
            self._root_per_s = root_per_s(list(self._works), HEAVY_LOAD)
        wanted = self._root_per_s
        if backlog_s > 0:
            wanted = min(wanted, 1 / backlog_s)
        wanted = max(wanted, self._least_per_s)
        if self.per_s / STEP < wanted < self.per_s * STEP:
            return False
        self.per_s = wanted
        return True


def root_per_s(works: list[float], load: float) -> float:
    """The decay for requests with these seconds of work, all equally frequent, at a load below
    1."""
    buckets = Counter(round(math.log2(work) * BUCKETS_PER_OCTAVE) for work in works)
    counted = [
        (math.pow(2.0, bucket / BUCKETS_PER_OCTAVE), count / len(works))
        for bucket, count in buckets.items()
    ]
    mean = sum(share * work for work, share in counted)
    square = sum(share * work * work for work, share in counted)
    rate = load / mean
    # exp(x) >= 1 + x + x^2 / 2, so the root is not above this; the function is convex,
    # so Newton's method comes down to the root from there and never passes it
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
