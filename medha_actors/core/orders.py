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
                        behind all others until it is late by RELEGATED_WORKS times its total
                        work: what is lost already delays nobody else
    dspf                instant = deadline + 18.5 work  width = 1     spf that heeds objectives: the
                                                                      same for default deadlines
    aspf                instant = deadline + A work     width = 1     dspf whose ageing A grows with
                                                                      the backlog (core/congestion)
    boost               instant = arrival - boost(work) width = 1     gamma-Boost (arXiv 2404.08826)
    dboost              instant = deadline - boost(lane)              the same from the deadline on,
                                                        width = 1     in lanes (below)
    preflow             instant = arrival + T log2(work x remaining)  PREFLOW (vllm-ascend): urgency
                                                        width = 1     doubles each T seconds
    dpreflow            instant = deadline + T log2(work x remaining)
    guardc              spf, but whoever can be in time is let through first (core/guard.py)

`lane` is the work to an octave (core/lanes.py); of a prefill of a few batches, a quarter of it once
it has begun. Boosts of works that differ by a tenth may differ by half a minute where much waits:
without lanes every second newcomer of a kind would overtake those who came before it, and what was
announced to them would not come true. In lanes equals go in the order of their deadlines, and what
is through in a few batches is interrupted only by what is much shorter.

`work` is the total work of a request that the cache does not save, `remaining` what of it is not
dispatched. boost(work) = -ln(1 - exp(-decay work)) / decay, core/decay.py says what the decay is.

Starvation: where an order's width is 1, no newcomer goes before a request after an instant: its own
instant less the least that any instant can lie behind its arrival. What is learned moves it, within
bounds: under dboost it is never later than

    deadline + boost_longest_s * ln(1.42 work / LEAST_WORK_S)

To keep the widths few, lars rounds the total work to an eighth of an octave (at most 4.5%, as good
as the predictor is).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from medha_actors.core.congestion import Congestion
from medha_actors.core.decay import Decay
from medha_actors.core.lanes import Lanes
from medha_actors.core.request import RequestState
from medha_actors.quantities import Policy
from medha_actors.tuning import OrderConfig

LANES_PER_OCTAVE = 8
# dboost: what a prefill counts as of its work once it has begun, if it has no more than so many
# graces, which are a batch and a half in every stage
BEGUN = 0.25
FEW_GRACES = 4.0
# spf: a request goes before all that come later than so many times its total work after it
AGEING = 20.0
# relegation: of a prefill's total work, how late it may become before it gets its place back
RELEGATED_WORKS = 8.0
RELEGATED_S = 0.5  # relegation: shorter prefills keep their place
# boost, preflow: work below counts as so much, so that no instant lies arbitrarily long
# before an arrival
LEAST_WORK_S = 0.01


class Tuning:
    """What the rules of a queue are set to; decay, lanes and congestion may change while it runs:
    then all instants have moved, and `moves` counts it. `backlog_s`: the work that waits. Queues of
    several tenants have one in common."""

    __slots__ = (
        "_newest",
        "backlog_s",
        "congestion",
        "decay",
        "given",
        "lanes",
        "moves",
    )

    def __init__(self, given: OrderConfig) -> None:
        self.given = given
        self.backlog_s = 0.0
        self.moves = 0
        self._newest = -1  # serial of the last arrival that was learned from
        self.decay = Decay(given.boost_decay_per_s, given.boost_longest_s)
        self.lanes = Lanes()
        self.congestion = Congestion(
            given.ageing_works, given.ageing_per_backlog, given.most_ageing_works
        )

    def learn(self, state: RequestState) -> None:
        """From a request, the first time that it is seen."""
        if state.serial <= self._newest:
            return
        self._newest = state.serial
        work_s = state.total_work_s
        decayed = self.decay.arrived(work_s, self.backlog_s)
        learns = self.given.boost_decay_per_s is None
        shifted = learns and self.lanes.arrived(work_s)
        if self.congestion.arrived(work_s, self.backlog_s) or decayed or shifted:
            self.moves += 1


class Order(NamedTuple):
    """A policy. `preemptive`: another prefill may take the turn, and decodes ride along; `shares`:
    space sharing; `relegates`: the hopeless go last; `guards`: who can be in time goes first;
    `learns`: instants follow what arrives; `yields`: an instant moves with the work that is done,
    so that a prefill is served until others are as urgent; `least`: what an instant lies behind
    its arrival at least (before it, if negative), where that bounds who can overtake; `begun`: the
    instant of what has begun, where that is another."""

    instant: Callable[[RequestState, Tuning], float]
    width: Callable[[RequestState], float]
    preemptive: bool = True
    shares: bool = False
    relegates: bool = False
    guards: bool = False
    learns: bool = False
    yields: bool = False
    least: Callable[[Tuning], float] | None = None
    begun: Callable[[RequestState, Tuning], float] | None = None


def _arrival(state: RequestState, tuning: Tuning) -> float:
    return state.milestones.arrived_at


def _due(state: RequestState, tuning: Tuning) -> float:
    return state.due_at


def _latest_start(state: RequestState, tuning: Tuning) -> float:
    return state.latest_start_at


def _aged(state: RequestState, tuning: Tuning) -> float:
    """Total, not remaining work: a long prefill near its end would overtake everybody for the rest
    of it."""
    return state.milestones.arrived_at + AGEING * state.total_work_s


def _due_aged(state: RequestState, tuning: Tuning) -> float:
    return state.due_at + tuning.given.ageing_works * state.total_work_s


def _due_aged_by_backlog(state: RequestState, tuning: Tuning) -> float:
    return state.due_at + tuning.congestion.ageing_works * state.total_work_s


def _boost_s(work_s: float, tuning: Tuning) -> float:
    decay = tuning.decay.per_s
    return -math.log(-math.expm1(-decay * max(work_s, LEAST_WORK_S))) / decay


def _boosted(state: RequestState, tuning: Tuning) -> float:
    return state.milestones.arrived_at - _boost_s(state.total_work_s, tuning)


def _due_boosted(state: RequestState, tuning: Tuning) -> float:
    return state.due_at - _boost_s(tuning.lanes.of(state.total_work_s), tuning)


def _due_boosted_begun(state: RequestState, tuning: Tuning) -> float:
    lane_s = tuning.lanes.of(state.total_work_s)
    if state.total_work_s <= FEW_GRACES * state.grace_s:
        lane_s *= BEGUN
    return state.due_at - _boost_s(lane_s, tuning)


def _held_s(work_s: float, remaining_s: float, tuning: Tuning) -> float:
    """By how much preflow puts a prefill later than one with a second of work."""
    octaves = math.log2(max(work_s, LEAST_WORK_S)) + math.log2(
        max(remaining_s, LEAST_WORK_S)
    )
    return tuning.given.preflow_doubling_s * octaves


def _flowing(state: RequestState, tuning: Tuning) -> float:
    held_s = _held_s(state.total_work_s, state.remaining_s, tuning)
    return state.milestones.arrived_at + held_s


def _due_flowing(state: RequestState, tuning: Tuning) -> float:
    return state.due_at + _held_s(state.total_work_s, state.remaining_s, tuning)


def _one(state: RequestState) -> float:
    return 1.0


def _rounded_work(state: RequestState) -> float:
    octaves = math.log2(max(state.drag * state.total_work_s, 1e-6))
    lane = round(octaves * LANES_PER_OCTAVE)
    return math.pow(2.0, lane / LANES_PER_OCTAVE)


def _none(tuning: Tuning) -> float:
    return 0.0


def _most_boosted(tuning: Tuning) -> float:
    return -_boost_s(0.0, tuning)


def _least_held(tuning: Tuning) -> float:
    return _held_s(0.0, 0.0, tuning)


ORDERS: dict[Policy, Order] = {
    "fcfs": Order(_arrival, _one, preemptive=False),
    "fcfs_chunked": Order(_arrival, _one, least=_none),
    "edf": Order(_due, _one, least=_none),
    "lrs": Order(_latest_start, _one, yields=True),
    "lars": Order(_latest_start, _rounded_work, shares=True, yields=True),
    "hrrn": Order(_arrival, _rounded_work, shares=True),
    "spf": Order(_aged, _one, shares=True, least=_none),
    "relegation": Order(
        _latest_start, _rounded_work, shares=True, relegates=True, yields=True
    ),
    "dspf": Order(_due_aged, _one, shares=True, least=_none),
    "aspf": Order(_due_aged_by_backlog, _one, shares=True, learns=True, least=_none),
    "boost": Order(_boosted, _one, shares=True, learns=True, least=_most_boosted),
    "dboost": Order(
        _due_boosted,
        _one,
        shares=True,
        learns=True,
        least=_most_boosted,
        begun=_due_boosted_begun,
    ),
    "preflow": Order(_flowing, _one, shares=True, least=_least_held),
    "dpreflow": Order(_due_flowing, _one, shares=True, least=_least_held),
    "guardc": Order(_aged, _one, shares=True, guards=True, least=_none),
}
