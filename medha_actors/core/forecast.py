"""When a request that has just arrived will have its first token: what the order will do, played
forward in sums.

    first token = the pipeline takes a batch again
                  + drag * (work that goes before its last chunk - what shares its batch)
                  + its own batch through all stages

Before its last chunk go its other chunks, those who are here and stand before it in the order at
that instant, and those who will have come by then and stand before it: their rate is learned, and
the order bounds how long they can overtake (`overtaken_until`). Other tenants get their share of
what all these are (core/rivals.py). All of it depends on the instant itself, so it is the solution
of an equation, closed in on from both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from medha_actors.core.assembly import Flight
from medha_actors.core.pace import Newcomer, Pace
from medha_actors.core.request import RequestState
from medha_actors.core.rivals import RARE, Rivals
from medha_actors.core.sharing import COURTESY, LONG_BUDGETS
from medha_actors.core.standing import Finish, Standing
from medha_actors.core.tenants import TenantQueues

SETTLED_S = 1.0  # of a prefill's work: then those who decode now are others
FOLLOWERS = 16  # of those behind a request that share its last batch
CLOSE = 0.02  # relative: then it is good enough
HALVINGS = 12  # of the interval, at most
LEAST_S = 1e-3
FARTHEST_S = 86_400.0


class Pipeline(NamedTuple):
    """What the stages are doing: when the first one takes a batch again, when what is on its way is
    through; what a batch may take, and what it takes before any prefill is in it."""

    stages: int
    takes_at: float
    done_at: float
    limit_s: float
    fixed_s: float


def pipeline_of(
    flights: Sequence[Flight],
    stages: int,
    limit: int,
    now: float,
    limit_s: float,
    fixed_s: float,
) -> Pipeline:
    """Batches pass the stages one behind the other, each taking the longest of its stages in
    all. `limit`: how many may be on their way."""
    takes_at = done_at = now
    first_done_at = now
    for index, flight in enumerate(flights):
        batch_s = flight.batch.predicted_s
        done_at = max(
            flight.launched_at + stages * batch_s, done_at + batch_s if index else now
        )
        takes_at = max(now, flight.launched_at + batch_s)
        if flight.alone:
            takes_at = max(now, done_at)
        if index == len(flights) - limit:
            first_done_at = done_at
    if len(flights) >= limit:
        takes_at = max(takes_at, first_done_at)
    return Pipeline(stages, takes_at, done_at, limit_s, fixed_s)


class Forecast:
    """For one queue."""

    def __init__(
        self, queue: TenantQueues, pace: Pace, groups: int, most_yield: float
    ) -> None:
        """`most_yield`: the largest share of a batch that a long prefill leaves to others."""
        self._most_yield = most_yield
        self._queue = queue
        self._pace = pace
        self._groups = groups

    def of(
        self, state: RequestState, pipeline: Pipeline, free: int, now: float
    ) -> float:
        """Seconds to the first token of a request that is not in the queue yet; `free`: how many
        may still start."""
        limit_s = pipeline.limit_s
        room_s = max(limit_s - pipeline.fixed_s, 0.1 * limit_s)
        long_s = LONG_BUDGETS * limit_s
        last_s = state.load_s - room_s * max(0, math.ceil(state.load_s / room_s) - 1)
        if state.load_s > long_s:
            last_s = room_s
        standing = self._queue.standing(state, last_s, long_s)
        newcomers, rivals = self._coming(state, now)
        overtaking = _Overtaking(
            newcomers, standing.finish, now, self._queue.order.yields
        )
        hurried = self._queue.hurries(state)
        # what rides along now is known; later it is as it usually is
        least = limit_s / room_s
        drag = max(self._pace.drag(hurried), least / self._groups)
        first_s = pipeline.takes_at - now
        own_s = state.load_s - last_s

        def tenants_s(wait_s: float) -> float:
            work_s = own_s + standing.before_s(now + wait_s)
            return work_s + overtaking.by(wait_s)

        def ahead(wait_s: float) -> float:
            work_s = tenants_s(wait_s)
            return work_s + rivals.given_s(work_s, wait_s)

        def due(wait_s: float) -> float:
            work_s = ahead(wait_s)
            if work_s + last_s <= room_s:
                return first_s
            beside_s = (room_s - last_s) / 2
            # groups work side by side, one prefill does not
            own_least_s = least * max(0.0, own_s - beside_s)
            return first_s + max(drag * max(0.0, work_s - beside_s), own_least_s)

        wait_s = solve(due, first_s)
        wait_s = min(
            wait_s, self._riding(state, standing, rivals, room_s, first_s, drag, now)
        )
        starting = standing.count_before(now + wait_s) - len(self._queue.started)
        starting += rivals.count(tenants_s(wait_s), wait_s)
        wait_s = max(wait_s, self._pace.room_in_s(1 + max(0, starting) - free, now))
        behind_s = standing.behind_s(now + wait_s, FOLLOWERS)
        if not hurried:  # nobody else's shares such a batch
            behind_s += self._queue.beside_s(state.tenant, FOLLOWERS)
        batch_s = self._batch(ahead(wait_s), last_s, behind_s, pipeline, room_s)
        through_s = wait_s + pipeline.stages * batch_s
        if wait_s > first_s:  # the stages are busy with the batch before
            return max(through_s, wait_s + (pipeline.stages - 1) * limit_s + batch_s)
        return max(through_s, pipeline.done_at - now + batch_s)

    def of_lone(
        self,
        state: RequestState,
        pipeline: Pipeline,
        batch_s: float,
        chunk_tokens: int,
        now: float,
    ) -> float:
        """The same where no other prefill is there: as alone, beside those that decode, until
        newcomers come. `batch_s`: what a batch costs that has nothing in it; `chunk_tokens`: how
        it would be cut alone."""
        idle_s = pipeline.takes_at - now + state.total_work_s
        beside_s = max(0.0, pipeline.fixed_s - batch_s)
        if state.load_s < pipeline.limit_s:  # it is through before they are
            chunks = max(1, -(-(state.goal - state.hit) // chunk_tokens))
            # its last chunk passes the last stage behind what is on its way
            last_s = pipeline.done_at - now + state.load_s / chunks + beside_s
            return max(idle_s + beside_s * (chunks + pipeline.stages - 1), last_s)
        at_first = pipeline.limit_s / max(
            pipeline.limit_s - beside_s, 0.1 * pipeline.limit_s
        )
        lasting = max(0.0, state.load_s - SETTLED_S) / state.load_s
        idle_s *= at_first + lasting * (self._pace.lasting_drag(now) - at_first)
        finish = self._queue.standing(state, pipeline.limit_s, math.inf).finish
        newcomers, rivals = self._coming(state, now)
        overtaking = _Overtaking(newcomers, finish, now, self._queue.order.yields)
        drag = self._pace.drag() / self._groups

        def due(wait_s: float) -> float:
            others_s = overtaking.by(wait_s)
            others_s += rivals.given_s(state.load_s + others_s, wait_s)
            return idle_s + drag * others_s

        return solve(due, idle_s)

    def _coming(self, state: RequestState, now: float) -> tuple[list[Newcomer], Rivals]:
        """Who of the same tenant is expected, and the other tenants."""
        newcomers = self._pace.newcomers(now, self._queue.offset, self._queue.moves)
        rivals = self._queue.rivals(state, newcomers)
        return [one for one in newcomers if one.tenant == state.tenant], rivals

    def _riding(
        self,
        state: RequestState,
        standing: Standing,
        rivals: Rivals,
        room_s: float,
        first_s: float,
        drag: float,
        now: float,
    ) -> float:
        """How long a short prefill waits in the share that a long one leaves to those behind it;
        infinite where none does."""
        long_s = LONG_BUDGETS * room_s
        long = [
            one.relative_slack(now)
            for one in self._queue.started.values()
            if one.load_s > long_s
        ]
        share = min(max(min(long, default=0.0), 0.0), self._most_yield)
        if share <= 0.0 or not self._queue.order.shares or state.load_s > long_s:
            return math.inf
        work_s = state.load_s + standing.short_before_s(now + first_s, long_s)
        work_s += rivals.given_s(work_s, first_s)
        return first_s + drag * max(0.0, work_s - share * room_s) / share

    def _batch(
        self,
        ahead_s: float,
        last_s: float,
        behind_s: Sequence[float],
        pipeline: Pipeline,
        room_s: float,
    ) -> float:
        """Seconds of the batch with the last chunk: the short ones of those `behind_s` fill it
        with chunks of theirs."""
        limit_s = pipeline.limit_s
        shared_s = last_s + (
            ahead_s if ahead_s + last_s <= room_s else (room_s - last_s) / 2
        )
        long = False
        for load_s in behind_s:
            if load_s > LONG_BUDGETS * limit_s:
                long = True
            else:
                shared_s = min(room_s, shared_s + load_s)
        batch_s = pipeline.fixed_s + shared_s
        if long or any(
            other.load_s > LONG_BUDGETS * limit_s
            for other in self._queue.started.values()
        ):
            batch_s *= COURTESY
        return min(batch_s, max(limit_s, pipeline.fixed_s + last_s))


class _Overtaking:
    """Work that comes within a wait and goes before a request with a place. `yields`: wider lanes
    go first only until they are no more urgent."""

    def __init__(
        self, newcomers: Sequence[Newcomer], finish: Finish, now: float, yields: bool
    ) -> None:
        self._finish = finish
        self._left_s = finish.instant - now
        self._yielding = [
            one for one in newcomers if yields and one.width > finish.width
        ]
        self._others = [
            (one.per_s, one.load_s, one.behind_s, one.width / finish.width)
            for one in newcomers
            if not (yields and one.width > finish.width)
        ]

    def by(self, wait_s: float) -> float:
        """Seconds of it."""
        slack_s = self._left_s - wait_s
        worked_s = 0.0
        for per_s, load_s, behind_s, widths in self._others:
            # whoever comes y seconds before the end goes before it if y + lead_s > 0
            lead_s = slack_s * widths - behind_s
            span_s = wait_s + lead_s if lead_s < 0.0 else wait_s
            count = per_s * span_s
            if load_s > RARE * wait_s:
                count -= 0.5
            if count > 0.0:
                worked_s += count * load_s
        for newcomer in self._yielding:
            worked_s += self._yielded_s(newcomer, wait_s)
        return worked_s

    def _yielded_s(self, newcomer: Newcomer, wait_s: float) -> float:
        per_s, load_s, behind_s, width, _ = newcomer
        slack_s = self._left_s - wait_s
        lead_s = slack_s / self._finish.width * width - behind_s
        if wait_s + lead_s <= 0:
            return 0.0
        start_s = max(0.0, -lead_s)
        whole_s = max(start_s, load_s - lead_s)
        rising_s = min(wait_s, whole_s)
        risen_s = (rising_s + lead_s) ** 2 - (start_s + lead_s) ** 2
        return per_s * (risen_s / 2 + load_s * max(0.0, wait_s - whole_s))


def solve(due: Callable[[float], float], low: float) -> float:
    """The smallest wait that is not shorter than what is due by then, about. Where nothing jumps
    between them, it is near the line through both ends of an interval."""
    low_due = due(low)
    if low_due <= low + LEAST_S:
        return max(low, low_due)
    high = low_due
    least = CLOSE
    while (high_due := due(high)) > high:
        slope = (high_due - low_due) / (high - low)
        low, low_due = high, high_due
        beyond_s = (low_due - low) / (1 - slope) * (1 + CLOSE) if slope < 1 else low
        high = max(low_due, low + min(low, max(beyond_s, least * low)))
        least *= 2
        if high >= FARTHEST_S:
            return FARTHEST_S
    over_s = low_due - low
    crossing = low + (high - low) * over_s / (over_s + high - high_due)
    guesses = [crossing * (1 - CLOSE / 3), crossing * (1 + CLOSE / 3)]
    for _ in range(HALVINGS):
        if high - low <= CLOSE * high:
            break
        middle = guesses.pop() if guesses else 0.0
        if not low < middle < high:
            middle = math.sqrt(max(low, LEAST_S) * high)  # they may be far apart
        if due(middle) <= middle:
            high = middle
        else:
            low = middle
    return high
