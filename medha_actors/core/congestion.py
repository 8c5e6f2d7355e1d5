"""How much more than usual is waiting: what aspf ages prefills by.

A request that is put behind all that come within A times its work can have its first token within
about A times its work, as long as less than that is waiting. When more is, everybody is late
whatever the order, and ageing serves the late ones, who are lost, before those who can still be in
time. So A grows with the backlog:

    A = max(least, per_backlog * backlog / typical), at most `most`

where `typical` is the work that a second of work belongs to, E[work^2] / E[work] of the last
arrivals: what somebody waits for who finds one prefill at work, twice over.
"""

from __future__ import annotations

from collections import deque

WINDOW = 256  # arrivals that count
STEP = 1.25  # the queue is sorted anew when A has moved this far


class Congestion:
    """`ageing_works` moves in steps, for a queue that is sorted by it."""

    def __init__(self, least: float, per_backlog: float, most: float) -> None:
        self.ageing_works = least
        self._least = least
        self._per_backlog = per_backlog
        self._most = max(least, most)
        self._works = deque[float](maxlen=WINDOW)
        self._sum = self._squares = 0.0

    def arrived(self, work_s: float, backlog_s: float) -> bool:
        """Count an arrival that finds so much work; whether `ageing_works` has changed."""
        if work_s <= 0:
            return False
        if len(self._works) == WINDOW:
            gone = self._works[0]
            self._sum -= gone
            self._squares -= gone * gone
        self._works.append(work_s)
        self._sum += work_s
        self._squares += work_s * work_s
        backlogs = backlog_s * max(self._sum, 0.0) / max(self._squares, 1e-12)
        wanted = min(max(self._least, self._per_backlog * backlogs), self._most)
        if self.ageing_works / STEP < wanted < self.ageing_works * STEP:
            return False
        changed = wanted != self.ageing_works
        self.ageing_works = wanted
        return changed
