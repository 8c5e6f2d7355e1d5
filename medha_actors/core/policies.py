"""The queue of prefills, in the order of a policy (core/orders.py has the rules).

With equal widths the order never changes while nothing happens, so requests are kept sorted in
lanes of equal priority and width, and a decision only compares the heads of the lanes: its cost
does not grow with the queue. A request's `priority` sorts before all of it.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from medha_actors.core.guard import Guard
from medha_actors.core.orders import ORDERS, RELEGATED_S, RELEGATED_WORKS, Tuning
from medha_actors.core.request import RequestState
from medha_actors.core.standing import Finish, LaneView, Standing
from medha_actors.quantities import Policy
from medha_actors.tuning import OrderConfig

LaneKey = tuple[float, float]  # priority, width
Entry = tuple[float, int, RequestState]  # instant, serial, request


class _Lane:
    """Requests of equal priority and width, sorted by instant. `instants` and `loads_s`: of each of
    them, and how long it keeps others waiting; `sums_s`: of the loads up to each, once somebody has
    asked; `work_s`: the sum of their remaining work."""

    __slots__ = ("entries", "instants", "loads_s", "sums_s", "work_s")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.instants: list[float] = []
        self.loads_s: list[float] = []
        self.sums_s: list[float] | None = None
        self.work_s = 0.0

    def summed_s(self) -> list[float]:
        """The sums, from 0.0 on."""
        if self.sums_s is None:
            self.sums_s = list(accumulate(self.loads_s, initial=0.0))
        return self.sums_s


class PrefillQueue:
    """All requests whose prefill is not wholly dispatched, in the order of a policy."""

    def __init__(
        self,
        policy: Policy,
        given: OrderConfig | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        """`tuning`: that of other queues of the same policy, which learn together."""
        self.order = ORDERS[policy]
        self._tuning = tuning or Tuning(given or OrderConfig())
        self._sorted = self._tuning.moves
        self._guards: dict[float, Guard] = {}  # by priority, where the order guards
        self._lanes: dict[LaneKey, _Lane] = {}
        # serial: lane, instant, remaining work
        self._places: dict[int, tuple[LaneKey, float, float]] = {}
        self.started: dict[
            int, RequestState
        ] = {}  # those that hold KV already, by serial

    def __len__(self) -> int:
        return len(self._places)

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._places) - len(self.started)

    def put(self, state: RequestState) -> None:
        """Enter a request, or move it to where its counts say it belongs now."""
        self.remove(state)
        if self.order.learns:
            self._tuning.learn(state)
            self._follow()
        key, instant = self._place(state)
        lane = self._lanes.setdefault(key, _Lane())
        index = bisect_left(lane.entries, (instant, state.serial))
        lane.entries.insert(index, (instant, state.serial, state))
        lane.instants.insert(index, instant)
        lane.loads_s.insert(index, state.load_s)
        lane.sums_s = None
        lane.work_s += state.remaining_s
        self._tuning.backlog_s += state.remaining_s
        self._places[state.serial] = key, instant, state.remaining_s
        if self.order.guards:
            self._guard(key[0]).put(state)
        if state.pieces:
            self.started[state.serial] = state

    def remove(self, state: RequestState) -> None:
        """Take a request out; nothing happens if it is not here."""
        place = self._places.pop(state.serial, None)
        if place is None:
            return
        key, instant, work_s = place
        lane = self._lanes[key]
        index = bisect_left(lane.entries, (instant, state.serial))
        del lane.entries[index]
        del lane.instants[index]
        del lane.loads_s[index]
        lane.sums_s = None
        lane.work_s -= work_s
        self._tuning.backlog_s -= work_s
        if not lane.entries:
            del self._lanes[key]
        if self.order.guards:
            self._guards[key[0]].remove(state.serial)
        self.started.pop(state.serial, None)

    def ordered(self, now: float) -> Iterator[RequestState]:
        """Requests in the policy's order at `now`; the queue must not change meanwhile."""
        self._follow()
        return self._guarded(now) if self.order.guards else self._by_rank(now)

    def _guarded(self, now: float) -> Iterator[RequestState]:
        for (priority, _), lane in sorted(
            self._lanes.items(), key=lambda item: item[0]
        ):
            yield from self._guards[priority].ordered(lane.entries, now)

    def _by_rank(self, now: float) -> Iterator[RequestState]:
        heads = []
        for (priority, width), lane in self._lanes.items():
            for relegated, start, stop in self._parts(lane.entries, width, now):
                instant, serial, _ = lane.entries[start]
                heads.append(
                    (
                        priority,
                        relegated,
                        (instant - now) / width,
                        serial,
                        start,
                        stop,
                        width,
                        lane.entries,
                    )
                )
        heapq.heapify(heads)
        while heads:
            priority, relegated, _, _, index, stop, width, entries = heads[0]
            yield entries[index][2]
            index += 1
            if index == stop:
                heapq.heappop(heads)
                continue
            instant, serial, _ = entries[index]
            rank = (instant - now) / width
            heapq.heapreplace(
                heads, (priority, relegated, rank, serial, index, stop, width, entries)
            )

    def key(self, state: RequestState, now: float) -> tuple[float, bool, float, int]:
        """The sort key of one request at `now` (where the order guards, before it does)."""
        (priority, width), instant = self._place(state)
        return (
            priority,
            self._relegated(width, instant, now),
            (instant - now) / width,
            state.serial,
        )

    def offset(self, state: RequestState) -> tuple[float, float]:
        """How far a request's place lies behind its arrival, and the width of its lane."""
        (_, width), instant = self._place(state)
        return instant - state.milestones.arrived_at, width

    def standing(self, state: RequestState, last_s: float, yields_s: float) -> Standing:
        """Who stands before a request that is not here when only `last_s` of its load is left.
        `yields_s`: prefills shorter than that are taken to be served at once."""
        remaining_s = state.remaining_s
        state.remaining_s = remaining_s - max(0.0, state.load_s - last_s)
        (priority, width), instant = self._place(state)
        state.remaining_s = remaining_s
        self._follow()
        lanes = [
            LaneView(*key, lane.instants, lane.loads_s, lane.summed_s())
            for key, lane in self._lanes.items()
        ]
        yields_s = yields_s if self.order.yields else math.inf
        return Standing(Finish(priority, width, instant), lanes, yields_s)

    def loads_s(self, most: int | None = None) -> list[float]:
        """What the first stage has to do for each, or for the first ones of each lane."""
        loads_s = list[float]()
        for lane in self._lanes.values():
            loads_s += lane.loads_s[:most]
        return loads_s

    def overtaken_until(self, state: RequestState) -> float:
        """Nobody who arrives after this instant goes before `state`; infinite where the order
        states no such bound. Among equal priorities, and as what is learned is now."""
        if self.order.least is None:
            return math.inf
        until = self._instant(state) - self.order.least(self._tuning)
        if self.order.guards:
            guard = self._guard(float(state.request.priority))
            until = max(until, guard.rescue_at(state))
        return until

    def work_s(self) -> float:
        """Remaining prefill work of all."""
        return sum(lane.work_s for lane in self._lanes.values())

    def _guard(self, priority: float) -> Guard:
        return self._guards.setdefault(priority, Guard(self._tuning.given.guard_works))

    def _follow(self) -> None:
        """If all instants have moved, sort anew."""
        if self._sorted == self._tuning.moves:
            return
        self._sorted = self._tuning.moves
        for key, lane in self._lanes.items():
            moved = [
                (self._instant(state), serial, state)
                for _, serial, state in lane.entries
            ]
            moved.sort(key=lambda entry: entry[:2])
            lane.entries = moved
            lane.instants = [instant for instant, _, _ in moved]
            lane.loads_s = [state.load_s for _, _, state in moved]
            lane.sums_s = None
            for instant, serial, _ in moved:
                self._places[serial] = key, instant, self._places[serial][2]

    def _relegated(self, width: float, instant: float, now: float) -> bool:
        return (
            self.order.relegates
            and width > RELEGATED_S
            and now - RELEGATED_WORKS * width <= instant < now
        )

    def _parts(
        self, entries: list[Entry], width: float, now: float
    ) -> list[tuple[bool, int, int]]:
        """A lane in up to three parts: (relegated, start, stop), from the latest entries to those
        with time left."""
        if not self.order.relegates or width <= RELEGATED_S:
            return [(False, 0, len(entries))]
        given_back = bisect_left(entries, (now - RELEGATED_WORKS * width,))
        hopeless = bisect_left(entries, (now,))
        parts = [
            (False, 0, given_back),
            (True, given_back, hopeless),
            (False, hopeless, len(entries)),
        ]
        return [part for part in parts if part[1] < part[2]]

    def _instant(self, state: RequestState) -> float:
        if state.pieces and self.order.begun is not None:
            return self.order.begun(state, self._tuning)
        return self.order.instant(state, self._tuning)

    def _place(self, state: RequestState) -> tuple[LaneKey, float]:
        instant = self._instant(state)
        if not self.order.preemptive and state.pieces:  # what has begun runs to its end
            return (-math.inf, 1.0), instant
        return (float(state.request.priority), self.order.width(state)), instant
