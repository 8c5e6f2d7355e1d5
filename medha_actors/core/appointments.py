"""When to come back: who is refused is given an instant, and capacity is kept for it.

A Retry-After is true only if the capacity is still there when its client returns, so what was
promised counts as work ahead of whoever comes without an appointment. A client that returns is
known by what it sends. Not all return: an appointment keeps its work times the share of those who
came of the last ones, and nothing any more when it is past.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from typing import NamedTuple

MOST = 10_000  # appointments at once; more are refused without one
GRACE_S = 2.0  # so late one may come, and by so much of the wait
GRACE = 0.1
EARLY = 0.1  # of the wait: clocks differ, and clients round
MEMORY = 0.995  # of who came and who did not, from one to the next
HOPE = 4.0  # as many are taken to have come before anything is known
LEAST_RETRY_S = 0.05


class Appointment(NamedTuple):
    """`kind`: the logarithm of its work; `cost_s`: seconds that are kept for it."""

    from_at: float
    until_at: float
    key: int
    serial: int
    kind: int
    cost_s: float


class Appointments:
    """Those of one scheduler; time is an argument."""

    def __init__(self) -> None:
        self._came = HOPE
        self._missed = 0.0
        self._by_key: dict[int, deque[Appointment]] = {}
        self._ends: list[tuple[float, int, int]] = []  # heap: until when, serial, key
        self._booked_s: dict[int, float] = {}  # by kind
        self._count = 0
        self._serial = 0

    def __len__(self) -> int:
        return self._count

    @property
    def shown(self) -> float:
        """The share of those with an appointment who came."""
        return self._came / (self._came + self._missed)

    def kept(self, key: int, now: float) -> float:
        """Whether somebody with this key has an appointment now, which is then over: 0.0; in how
        many seconds it is; infinite: there is none."""
        self._expire(now)
        waiting = self._by_key.get(key)
        if not waiting:
            return math.inf
        if now < waiting[0].from_at:
            return waiting[0].from_at - now
        self._close(key, waiting.popleft())
        self._count_one(True)
        return 0.0

    def left(self, now: float) -> int:
        """How many are not over."""
        self._expire(now)
        return self._count

    def ahead_s(self, load_s: float, now: float) -> float:
        """Seconds kept for those who do not have more to do."""
        self._expire(now)
        own = _kind(load_s)
        booked = [booked_s for kind, booked_s in self._booked_s.items() if kind <= own]
        return self.shown * sum(booked)

    def book(
        self, key: int, load_s: float, cost_s: float, in_s: float, now: float
    ) -> float:
        """An appointment in so many seconds. Returns what the client is to wait."""
        in_s = max(in_s, LEAST_RETRY_S)
        if self._count >= MOST:
            return in_s
        early_s = EARLY * in_s
        appointment = Appointment(
            from_at=now + in_s - early_s,
            until_at=now + in_s * (1 + GRACE) + GRACE_S,
            key=key,
            serial=self._serial,
            kind=_kind(load_s),
            cost_s=cost_s,
        )
        self._serial += 1
        self._count += 1
        self._by_key.setdefault(key, deque()).append(appointment)
        heapq.heappush(self._ends, (appointment.until_at, appointment.serial, key))
        kind = appointment.kind
        self._booked_s[kind] = self._booked_s.get(kind, 0.0) + appointment.cost_s
        return in_s

    def _count_one(self, came: bool) -> None:
        self._came = MEMORY * self._came + came
        self._missed = MEMORY * self._missed + (not came)

    def _expire(self, now: float) -> None:
        while self._ends and self._ends[0][0] < now:
            _, serial, key = heapq.heappop(self._ends)
            waiting = self._by_key.get(key) or deque[Appointment]()
            gone = next((one for one in waiting if one.serial == serial), None)
            if gone is not None:
                self._by_key[key].remove(gone)
                self._close(key, gone)
                self._count_one(False)

    def _close(self, key: int, gone: Appointment) -> None:
        self._count -= 1
        if not self._by_key[key]:
            del self._by_key[key]
        left_s = self._booked_s[gone.kind] - gone.cost_s
        if left_s > 1e-9:
            self._booked_s[gone.kind] = left_s
        else:
            del self._booked_s[gone.kind]


def _kind(load_s: float) -> int:
    return round(math.log2(max(load_s, 1e-6)))
