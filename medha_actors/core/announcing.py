"""What a new request is told: when its first token will be there. It keeps the forecast
(core/forecast.py) and what it learns from (core/pace.py) up to date with the batches that go and
the tokens that come."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from medha_actors.core.assembly import Flight
from medha_actors.core.chunking import PrefillTable, batch_budget
from medha_actors.core.decoding import decode_rows
from medha_actors.core.forecast import Forecast, pipeline_of
from medha_actors.core.group_load import GroupLoad
from medha_actors.core.kv_plan import Grid
from medha_actors.core.live import LiveRequests
from medha_actors.core.pace import FREE, IDLE, LONG, PAID, SEVERAL, WAITING, Pace
from medha_actors.core.picks import Picks
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.request import RequestState
from medha_actors.core.tenants import KEPT_FREE

# prefills of more budgets are forecast as such of several batches, as long ones
FEW_BUDGETS = 2.0
VAST_BUDGETS = 32.0
LEAST_ROOM_S = 0.1  # nobody is told to come back sooner for want of room


class Announcing:
    """For one scheduler. `most_yield`: the largest share of a batch that a long prefill leaves to
    others."""

    def __init__(
        self,
        live: LiveRequests,
        flights: Sequence[Flight],
        table: PrefillTable,
        model: ExecutionModel,
        grid: Grid,
        budget_s: float,
        most_yield: float,
    ) -> None:
        self._live = live
        self._flights = flights
        self._table = table
        self._model = model
        self._stages = grid.stages
        self._groups = grid.groups
        self._budget_s = budget_s
        self.pace = Pace()
        self._forecast = Forecast(live.queue, self.pace, grid.groups, most_yield)
        self._decodes_s = 0.0  # of the decodes in the last batch that had any
        # the last batch, if it left others waiting: when it went, its load, and whether
        # it was made way for
        self._last: tuple[float, float, bool] | None = None
        self._hurried = False

    def first_token_s(
        self, state: RequestState, *, limit: int, free: int, now: float
    ) -> float:
        """In how many seconds a request that is not live yet will have its first token. `limit`:
        batches that may be in flight; `free`: how many requests may start."""
        batch_s = self._table.batch_s()
        waiting = len(self._live.queue) > 0
        hurried = waiting and self._live.queue.hurries(state)
        beside = self._live.decoding and not hurried  # others' decodes make way
        fixed_s = max(self._decodes_s if beside else 0.0, batch_s)
        limit_s = self._budget_s / self._model.margin
        pipeline = pipeline_of(
            self._flights, self._stages, limit, now, limit_s, fixed_s
        )
        if waiting:
            expected_s = self._forecast.of(state, pipeline, free, now)
        else:
            cut = self._table.lone_cut(state.goal)
            expected_s = self._forecast.of_lone(
                state, pipeline, batch_s, cut.chunk, now
            )
            if not self._flights:
                expected_s *= cut.part
        kind = PAID if hurried else self._kind(state, waiting)
        state.expected = kind, now, expected_s
        return expected_s * self.pace.truth(kind)

    def _kind(self, state: RequestState, waiting: bool) -> int:
        """Of a forecast: who is overtaken how often is a matter of the length."""
        budgets = state.total_work_s / self._budget_s
        if budgets > VAST_BUDGETS:
            return LONG
        if not self._live.by_id:
            return IDLE
        if budgets > FEW_BUDGETS:
            return SEVERAL
        return WAITING if waiting else FREE

    def tokens_in_time_s(self, state: RequestState, now: float) -> float:
        """In how many seconds one more may decode without the tokens of those who run coming late:
        0.0 where it may now."""
        others = self._live.holding.values()
        count = len(others) + 1
        if self._live.queue.yields(state):
            count += max(1, count // KEPT_FREE)
        rows = decode_rows(count, self._stages)
        cached = sum([other.known for other in others]) + state.known
        load = GroupLoad(
            rows=rows, spans=rows, decode_kv=cached * rows // count, sampled=rows
        )
        batch_s = self._model.base(load) * self._model.decode.scale / self._groups
        tpot_s = min(self._live.decoding.tightest_tpot(), state.tpot_s)
        if not others or batch_s <= min(
            self._budget_s, batch_budget(tpot_s, self._stages)
        ):
            return 0.0
        return max(self.pace.room_in_s(1, now), LEAST_ROOM_S)

    def accepted(self, state: RequestState, now: float) -> None:
        """A request is about to become live."""
        self.pace.arrived(state, now)

    def dispatching(self, picks: Picks, now: float) -> float:
        """A batch goes: those who were waiting when the last one went have waited until now.
        Returns the load of its prefills before it."""
        if self._last is not None:
            launched_at, load_s, hurried = self._last
            self.pace.dispatched(load_s, now - launched_at, hurried)
        queue = self._live.queue
        self._hurried = (
            len(queue.shares) > 1
            and bool(picks.prefills)
            and queue.pays(picks.prefills[0].state)
        )
        if picks.decodes and not self._hurried:
            self._decodes_s = picks.loads.decodes_s()
        return sum([state.load_s for state, _, _ in picks.prefills])

    def dispatched(
        self, prefills: Iterable[RequestState], before_s: float, now: float
    ) -> None:
        """It has gone; `before_s`: as `dispatching` said."""
        states = list(prefills)
        left_s = sum([state.load_s for state in states if state.prefilling])
        waiting = states and len(self._live.queue)
        self._last = (now, before_s - left_s, self._hurried) if waiting else None

    def nothing_to_do(self) -> None:
        """Whoever waits does not wait for batches now."""
        self._last = None

    def first_token(self, state: RequestState, now: float) -> None:
        """It is there."""
        if state.expected is not None and not state.epoch:
            kind, asked_at, expected_s = state.expected
            if kind == PAID and self._live.queue.payable_s(state.tenant, math.inf) > 0:
                return  # its tenant may be about to use up its advance
            self.pace.came_true(kind, expected_s, now - asked_at)

    def ended(self, state: RequestState, now: float) -> None:
        """A request is about to be removed."""
        if state.id in self._live.holding:
            self.pace.departed(now)
