"""Who is prefilled next. Every policy is a line in time: key = (instant - now) / width, smallest
first.

    fcfs, fcfs_chunked  instant = arrival               width = 1
    edf                 instant = deadline              width = 1
    lrs                 instant = deadline - remaining  width = 1     least remaining (raw) slack
    lars                instant = deadline - remaining  width = work  length-aware relative slack
                                                                      (paper, 4.1)
    hrrn                instant = arrival               width = work  highest waiting time per work
    spf                 instant = arrival + 20 work     width = 1     shortest prefill first, aged
    relegation          as lars, but a long prefill that cannot meet its deadline any more goes
                        behind all others until it is late by PATIENCE times its total work: what is
                        lost already delays nobody else

`work` is the total work of a request, `remaining` what of it is not dispatched.

With equal widths the order never changes while nothing happens, so requests are kept sorted in
lanes of equal priority and width, and a decision only compares the heads of the lanes: its cost
does not grow with the queue. To keep the lanes few, lars rounds the total work to an eighth of an
octave (at most 4.5%, as good as the predictor is). A request's `priority` sorts before all of it.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from typing import NamedTuple

from medha_actors.config import Policy
from medha_actors.core.request import RequestState

LANES_PER_OCTAVE = 8
# spf: a request goes before all that come later than so many times its total work after it
AGEING = 20.0
# relegation: of a prefill's total work, how late it may become before it gets its place back
PATIENCE = 8.0
RELEGATED_S = 0.5  # relegation: shorter prefills keep their place
Entry = tuple[float, int, RequestState]  # instant, serial, request
LaneKey = tuple[float, float]  # priority, width


class Order(NamedTuple):
    """A policy. `preemptive`: another prefill may take the turn, and decodes ride along; `shares`:
    space sharing; `relegates`: the hopeless go last."""

    instant: Callable[[RequestState], float]
    width: Callable[[RequestState], float]
    preemptive: bool = True
    shares: bool = False
    relegates: bool = False


def _arrival(state: RequestState) -> float:
    return state.timeline.arrived_at


def _due(state: RequestState) -> float:
    return state.due_at


def _latest_start(state: RequestState) -> float:
    return state.due_at - state.remaining_s


def _aged(state: RequestState) -> float:
    """Total, not remaining work: a long prefill near its end would overtake everybody for the rest
    of it."""
    return state.timeline.arrived_at + AGEING * state.total_work_s


def _one(state: RequestState) -> float:
    return 1.0


def _rounded_work(state: RequestState) -> float:
    octave: float = (
        round(math.log2(max(state.total_work_s, 1e-6)) * LANES_PER_OCTAVE) / LANES_PER_OCTAVE
    )
    return math.pow(2.0, octave)


ORDERS: dict[Policy, Order] = {
    "fcfs": Order(_arrival, _one, preemptive=False),
    "fcfs_chunked": Order(_arrival, _one),
    "edf": Order(_due, _one),
    "lrs": Order(_latest_start, _one),
    "lars": Order(_latest_start, _rounded_work, shares=True),
    "hrrn": Order(_arrival, _rounded_work, shares=True),
    "spf": Order(_aged, _one, shares=True),
    "relegation": Order(_latest_start, _rounded_work, shares=True, relegates=True),
}


class _Lane:
    """Requests of equal priority and width, sorted by instant; `work_s` is the sum of their
    remaining work."""

    __slots__ = ("entries", "work_s")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.work_s = 0.0


class PrefillQueue:
    """All requests whose prefill is not wholly dispatched, in the order of a policy."""

    def __init__(self, policy: Policy) -> None:
        self.order = ORDERS[policy]
        self._lanes: dict[LaneKey, _Lane] = {}
        self._places: dict[
            int, tuple[LaneKey, float, float]
        ] = {}  # serial: lane, instant, remaining work
        self.started: dict[int, RequestState] = {}  # those that hold KV already, by serial

    def __len__(self) -> int:
        return len(self._places)

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._places) - len(self.started)

    def put(self, state: RequestState) -> None:
        """Enter a request, or move it to where its counts say it belongs now."""
        self.remove(state)
        key, instant = self._place(state)
        lane = self._lanes.setdefault(key, _Lane())
        insort(lane.entries, (instant, state.serial, state))
        lane.work_s += state.remaining_s
        self._places[state.serial] = key, instant, state.remaining_s
        if state.pieces:
            self.started[state.serial] = state

    def remove(self, state: RequestState) -> None:
        """Take a request out; nothing happens if it is not here."""
        place = self._places.pop(state.serial, None)
        if place is None:
            return
        key, instant, work_s = place
        lane = self._lanes[key]
        del lane.entries[bisect_left(lane.entries, (instant, state.serial))]
        lane.work_s -= work_s
        if not lane.entries:
            del self._lanes[key]
        self.started.pop(state.serial, None)

    def ordered(self, now: float) -> Iterator[RequestState]:
        """Requests in the policy's order at `now`; the queue must not change meanwhile."""
        heads = []
        for (priority, width), lane in self._lanes.items():
            for relegated, start, stop in self._stretches(lane.entries, width, now):
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
        """The sort key of one request at `now`."""
        (priority, width), instant = self._place(state)
        return priority, self._relegated(width, instant, now), (instant - now) / width, state.serial

    def work_ahead_s(self, state: RequestState, now: float) -> float:
        """Remaining prefill work of the requests that go before `state`: its share of each lane, by
        count."""
        priority, _, rank, _ = self.key(state, now)
        ahead = 0.0
        for (other, width), lane in self._lanes.items():
            if other <= priority:
                count = len(lane.entries)
                if other == priority:
                    count = bisect_left(lane.entries, (now + rank * width, state.serial))
                ahead += lane.work_s * count / len(lane.entries)
        return ahead

    def work_s(self) -> float:
        """Remaining prefill work of all."""
        return sum(lane.work_s for lane in self._lanes.values())

    def _relegated(self, width: float, instant: float, now: float) -> bool:
        return (
            self.order.relegates and width > RELEGATED_S and now - PATIENCE * width <= instant < now
        )

    def _stretches(
        self, entries: list[Entry], width: float, now: float
    ) -> list[tuple[bool, int, int]]:
        """A lane in up to three parts: (relegated, start, stop), from the latest entries to those
        with time left."""
        if not self.order.relegates or width <= RELEGATED_S:
            return [(False, 0, len(entries))]
        given_back = bisect_left(entries, (now - PATIENCE * width,))
        hopeless = bisect_left(entries, (now,))
        parts = [
            (False, 0, given_back),
            (True, given_back, hopeless),
            (False, hopeless, len(entries)),
        ]
        return [part for part in parts if part[1] < part[2]]

    def _place(self, state: RequestState) -> tuple[LaneKey, float]:
        if not self.order.preemptive and state.pieces:  # what has begun runs to its end
            return (-math.inf, 1.0), self.order.instant(state)
        return (float(state.request.priority), self.order.width(state)), self.order.instant(state)
