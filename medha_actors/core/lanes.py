"""Works that count as equal: of an octave each.

Where one octave ends is learned: as far as may be from the works that come, heavier ones counting
for more. Long prompts of one kind are mostly within half an octave; if a boundary ran through
them, every second one would overtake the others.
"""

from __future__ import annotations

import math
from collections import deque

WINDOW = 256  # arrivals that count
EACH = 32  # the middle is found for so many new ones, and at the 1st, 2nd, 4th ...
STEP_OCTAVES = 0.125  # it stays where it is until it would move so far
LEAST_S = 1e-6


class Lanes:
    """`middle`: of every lane, in octaves above a power of two, from -0.5 to 0.5."""

    def __init__(self) -> None:
        self.middle = 0.0
        self._works = deque[float](maxlen=WINDOW)
        self._count = 0

    def of(self, work_s: float) -> float:
        """Seconds that the lane of this work stands for: from 0.7 to 1.42 times as much."""
        octaves = math.log2(max(work_s, LEAST_S))
        return math.pow(2.0, round(octaves - self.middle) + self.middle)

    def arrived(self, work_s: float) -> bool:
        """Count an arrival; whether lanes have moved."""
        if work_s <= LEAST_S:
            return False
        self._works.append(work_s)
        self._count += 1
        if self._count % EACH and self._count & (self._count - 1):
            return False
        middle = middle_of(self._works)
        off = abs(middle - self.middle)
        if min(off, 1.0 - off) < STEP_OCTAVES:
            return False
        self.middle = middle
        return True


def middle_of(works: deque[float]) -> float:
    """The mean of works on the circle of an octave, weighted by themselves."""
    east = 0.0
    north = 0.0
    for work in works:
        angle = 2 * math.pi * math.log2(work)
        east += work * math.cos(angle)
        north += work * math.sin(angle)
    return math.atan2(north, east) / (2 * math.pi)
