"""guardc: deadlines that can be kept are kept, then the shortest aged prefill goes first.

Moore and Hodgson's rule finds the prefills that can still be in time together (F): in the order of
their deadlines, work is added up, and at the first that would be late the largest so far is left
out. Then, in the order of spf (arrival + 20 work), the first one runs that makes nobody in F late;
the one with the nearest deadline in F always does. Two rules beside it:

- whatever is behind its deadline by more than so many times its work is rescued: it goes first;
- before the first pick goes what is earlier by spf and has little left to do: at most SMALL of the
  pick's work.

So after an instant no newcomer goes before a prefill: when it is rescued, or when newcomers come
behind it by spf, whichever is later (`overtaken_until` in core/policies.py).
"""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence

from medha_actors.core.request import RequestState

SMALL = 0.05  # of the work of the one that runs: what may go before it
Entry = tuple[float, int, RequestState]  # instant, serial, request


class Guard:
    """Prefills of one priority, by deadline and by the instant of their rescue."""

    def __init__(self, patience_works: float) -> None:
        self._patience_works = patience_works
        self._by_due: list[Entry] = []
        self._by_rescue: list[Entry] = []
        self._keys: dict[int, tuple[float, float]] = {}  # serial: due, rescued at

    def rescue_at(self, state: RequestState) -> float:
        """When a prefill that is late goes before all others."""
        return state.due_at + self._patience_works * state.total_work_s

    def put(self, state: RequestState) -> None:
        """Enter a prefill that is not here."""
        due_at = state.due_at
        rescue_at = self.rescue_at(state)
        insort(self._by_due, (due_at, state.serial, state))
        insort(self._by_rescue, (rescue_at, state.serial, state))
        self._keys[state.serial] = due_at, rescue_at

    def remove(self, serial: int) -> None:
        """Take out a prefill that is here."""
        due_at, rescue_at = self._keys.pop(serial)
        del self._by_due[bisect_left(self._by_due, (due_at, serial))]
        del self._by_rescue[bisect_left(self._by_rescue, (rescue_at, serial))]

    def ordered(self, aged: Sequence[Entry], now: float) -> Iterator[RequestState]:
        """All of them, who are `aged` in the order of spf, in the order of the rule at `now`."""
        picks = self._picks(aged, now)
        first = next(picks, None)
        if first is None:
            return
        seen = set[int]()
        for state in itertools.chain(_before(first, aged), (first,), picks):
            if state.serial not in seen:
                seen.add(state.serial)
                yield state

    def _picks(self, aged: Sequence[Entry], now: float) -> Iterator[RequestState]:
        """The rescued, then who makes nobody late, then the others."""
        for _, _, state in self._by_rescue[: bisect_left(self._by_rescue, (now,))]:
            yield state
        room_s, least_s = self._room(now)
        spent_s = 0.0
        for _, serial, state in aged:
            if state.left_s + spent_s <= room_s.get(serial, least_s):
                spent_s += state.left_s
                yield state
        for _, serial, state in self._by_due:
            if serial in room_s:
                yield state
        for _, _, state in aged:
            yield state

    def _room(self, now: float) -> tuple[dict[int, float], float]:
        """Of each one in F, the seconds that those with nearer deadlines can wait; and that all of
        F can."""
        feasible = self._feasible(now)
        room_s = {}
        least_s = math.inf
        done_at = now
        for due_at, serial, state in self._by_due[bisect_right(self._by_due, (now,)) :]:
            if serial in feasible:
                room_s[serial] = least_s
                done_at += state.left_s
                least_s = min(least_s, due_at - done_at)
        return room_s, least_s

    def _feasible(self, now: float) -> set[int]:
        """Serials of those that can be in time together."""
        largest: list[tuple[float, int]] = []  # a heap
        done_at = now
        for due_at, serial, state in self._by_due[bisect_right(self._by_due, (now,)) :]:
            left_s = state.left_s
            if now + left_s > due_at:
                continue
            done_at += left_s
            heapq.heappush(largest, (-left_s, serial))
            if done_at > due_at:
                done_at += heapq.heappop(largest)[0]
        return {serial for _, serial in largest}


def _before(first: RequestState, aged: Sequence[Entry]) -> Iterator[RequestState]:
    """What is earlier by spf than the first pick, and small beside it."""
    for _, _, state in aged:
        if state is first:
            return
        if state.remaining_s <= SMALL * first.total_work_s:
            yield state
