"""The scheduler: requests come in, batches go out, results come back as events. Pure: time is an
argument.

One object, two drivers: the scheduler actor serves real traffic with it, `core.simulator` drives
the same one in simulated time. The driver asks for the next batch whenever stage 0 is free, hands
in the results of each batch in order, and bounds the batches in flight to `in_flight_limit`.
Instants are epoch seconds.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from functools import partial

from medha_actors.config import ObjectivesConfig, SchedulerConfig
from medha_actors.core.admission import Admission, rejected
from medha_actors.core.alone import decodes_alone, goes_alone
from medha_actors.core.announcing import Announcing
from medha_actors.core.assembly import Flight, batch_of
from medha_actors.core.batch import Batch
from medha_actors.core.chunking import LONE_BUDGETS, batch_budget, table_of
from medha_actors.core.completion import Completion
from medha_actors.core.kv_plan import Grid
from medha_actors.core.live import LiveRequests
from medha_actors.core.packer import Packer
from medha_actors.core.placement import Placement
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.record import BatchRecord, Slack
from medha_actors.core.request import RequestState
from medha_actors.core.shedding import Shedding
from medha_actors.core.stats import Stats, Totals, stats_of
from medha_actors.core.suspects import Suspects
from medha_actors.core.turns import Turn
from medha_actors.errors import LateError, MedhaError, RequestError
from medha_actors.messages import (
    Accepted,
    Event,
    FinishReason,
    Rejected,
    Request,
    StepResult,
)

# of a batch, that decodes take beside another tenant's prefill that is paid for (core/shares.py)
DECODES_BESIDE = 0.03
DEADLY = "the pipeline died repeatedly while this request was in it"


class Scheduler:
    """Continuous batching over a grid of pipeline stages and KV groups, under one policy."""

    def __init__(
        self,
        settings: SchedulerConfig,
        objectives: ObjectivesConfig,
        cache_name: str | None,
        grid: Grid,
        model: ExecutionModel,
    ) -> None:
        """`cache_name`: as in MedhaConfig."""
        self._settings = settings
        self.grid = grid
        self.model = model
        self.budget_s = settings.batch_budget_s or batch_budget(
            objectives.tpot_s, grid.stages
        )
        self.table = table_of(settings, grid, model, self.budget_s)
        self.live = LiveRequests(settings, grid, self.table, self.budget_s)
        self._admission = Admission(
            settings,
            objectives,
            cache_name,
            grid,
            self.table,
            self.live,
            grid.stages * LONE_BUDGETS * self.budget_s,
        )
        self._flights: deque[Flight] = deque()
        most_yield = settings.max_yield if settings.space_sharing else 0.0
        self._announcing = Announcing(
            self.live, self._flights, self.table, model, grid, self.budget_s, most_yield
        )
        self._shedding = Shedding(settings.admission)
        self._placement = Placement(self.live.kv, self.live.hits, self.table)
        self._suspects = Suspects()
        self._totals = Totals()
        self._completion = Completion(
            self.live,
            self._suspects,
            self._announcing,
            self._totals,
            model,
            self.table,
            grid.max_model_len_tokens,
        )
        self._turn = Turn()
        self._serials = itertools.count()
        self._batch_ids = itertools.count()
        self.record = BatchRecord(-1, (), (), ())  # why the last batch is as it is

    @property
    def max_tokens(self) -> int:
        """The longest sequence, prompt and output, that fits the model and the KV cache."""
        return self._admission.max_tokens

    def add(self, request: Request, now: float) -> Accepted | Rejected:
        """Queue a request. Its id must not be in use."""
        try:
            if request.id in self.live.by_id:
                raise RequestError(
                    f"request id {request.id!r} is in use", param="request_id"
                )
            self._admission.check(request)
        except MedhaError as error:
            return rejected(error)
        drag = self._announcing.pace.steady_drag
        state = self._admission.admit(request, next(self._serials), drag, now)
        expected = partial(self._first_token_s, now=now)
        try:
            first_s = self._shedding.promised_s(state, self._announcing, expected, now)
        except LateError as error:
            self.live.hits.leave(state)
            return rejected(error)
        self._announcing.accepted(state, now)
        self.live.add(state)
        deadline_at = state.milestones.deadline_at
        waited_s = max(0.0, now - request.arrived_at)
        return Accepted(
            deadline_at=deadline_at,
            ttft_objective_s=deadline_at - request.arrived_at,
            tpot_objective_s=state.tpot_s,
            predicted_ttft_s=waited_s + first_s + request.way_s,
            cached_tokens=max(state.hit, state.stored),
        )

    def waits(self, prompts: Iterable[int], tenant: str, now: float) -> list[float]:
        """For each of these prompts, none of which is cached: how many seconds later than in an
        idle grid its first token would come, if it arrived now as this tenant's."""
        drag = self._announcing.pace.steady_drag
        states = [
            self._admission.imagined(prompt, tenant, drag, now) for prompt in prompts
        ]
        return [
            max(0.0, self._first_token_s(state, now) - state.total_work_s)
            for state in states
        ]

    def cancel(
        self,
        request_id: str,
        now: float,
        reason: FinishReason = "abort",
        message: str | None = None,
    ) -> list[Event]:
        """End a request now, whatever it is doing; nothing happens if it is not known."""
        state = self.live.by_id.get(request_id)
        if state is None:
            return []
        return [self._completion.finish(state, reason, message, now)]

    def expire(self, now: float) -> list[Event]:
        """End the requests whose timeout has passed."""
        events: list[Event] = []
        while (
            state := self.live.next_timeout()
        ) is not None and state.timeout_at <= now:
            limit_s = state.timeout_at - state.milestones.arrived_at
            message = f"not finished within its {limit_s:g} s"
            events.append(self._completion.finish(state, "timeout", message, now))
        return events

    def next_wake(self, now: float) -> float | None:
        """When expire() could have something to do next; None: never, as things stand."""
        return state.timeout_at if (state := self.live.next_timeout()) else None

    @property
    def in_flight_limit(self) -> int:
        """One for each stage; one more for a lone request, whose wait is nobody's."""
        return self.grid.stages + (len(self.live.by_id) == 1)

    def next_batch(self, now: float) -> Batch | None:
        """For stage 0; None: nothing can run before a batch returns or a request arrives."""
        if self._flights and self._flights[-1].alone:
            return None
        live = self.live
        tightest_s = batch_budget(live.decoding.tightest_tpot(), self.grid.stages)
        budget_s = min(self.budget_s, tightest_s)
        live.refresh()
        packer = Packer(
            self._settings, self.grid, self.model, self._placement, now, budget_s
        )
        for suspect in self._suspects.due():
            if not packer.can_start(
                suspect, slots=self._slots(), headroom=live.running()
            ):
                continue
            if self._flights:
                return None  # it runs alone, as soon as these are back
            if self._add_suspect(packer, suspect, now):
                return self._dispatch(packer, now, alone=True, suspect=True)
        together = decodes_alone(live, self.grid.stages, self.model)
        if together and self._flights:
            return None  # all decodes, as soon as these are back
        if live.queue.order.preemptive:
            self._add_decodes(packer, now, together)
        if len(live.queue):
            packer.add_prefills(
                live.queue,
                slots=self._slots(),
                headroom=live.running(),
                live=live.by_id.values(),
                decoding=len(live.decoding) > 0,
                idle=not self._flights,
                returned_s=self._returned_s(),
            )
        if not live.queue.order.preemptive:
            self._add_decodes(packer, now, together)
        if packer.picks.decodes or packer.picks.prefills:
            alone = not self._flights and goes_alone(
                packer.picks, len(live.by_id), self.table
            )
            return self._dispatch(packer, now, alone)
        self._announcing.nothing_to_do()
        return None

    def complete(self, results: Sequence[StepResult], now: float) -> list[Event]:
        """The results of the oldest batch in flight, of all groups. Those of before a restart are
        ignored."""
        batch_id = results[0].batch_id
        if not self._flights or batch_id < self._flights[0].batch.id:
            return []
        if batch_id != self._flights[0].batch.id:
            raise ValueError(
                f"batch {batch_id} came back before batch {self._flights[0].batch.id}"
            )
        return self._completion.landed(self._flights.popleft(), results, now)

    def restart(
        self,
        now: float,
        lost: Collection[int] | None = None,
        found: Collection[int] = (),
    ) -> list[Event]:
        """Batches in flight, the stages' memory and the KV of the groups in `lost` (None: all) are
        gone; the second tiers of those in `found` are there still.

        Requests that were in flight in those groups (in any, if none is lost) become suspects,
        which run alone once; those that were running alone are ended.
        """
        every = range(self.grid.groups)
        convicted = self._suspects.accuse(self._flights, lost or every)
        self._flights.clear()
        self._announcing.nothing_to_do()
        self._turn.clear()
        events = [
            self._completion.finish(state, "error", DEADLY, now) for state in convicted
        ]
        self.live.restart(every if lost is None else lost, found)
        return events

    def stats(self) -> Stats:
        """Figures for metrics; cheap."""
        flights = len(self._flights)
        return stats_of(self.live, self.model, self._totals, flights, self.budget_s)

    def _first_token_s(self, state: RequestState, now: float) -> float:
        """In how many seconds a request that is not live yet will have its first token."""
        return self._announcing.first_token_s(
            state, limit=self.in_flight_limit, free=self._slots(), now=now
        )

    def _returned_s(self) -> float:
        """When what is on its way will be back, stage 0 having done its part of it."""
        last_s = self._flights[-1].batch.predicted_s if self._flights else 0.0
        return (self.grid.stages - 1) * last_s

    def _slots(self) -> int:
        """Prefills that may start."""
        return self._settings.max_running_requests - len(self.live.holding)

    def _add_suspect(self, packer: Packer, state: RequestState, now: float) -> bool:
        """Its next span; False: it had to yield its KV."""
        if state.prefilling:
            packer.add_alone(state)
        elif self.live.make_room(state, (), now):
            packer.add_decodes([state])
        else:
            return False
        return True

    def _add_decodes(self, packer: Packer, now: float, together: bool) -> None:
        """Under a policy without preemption, decodes stay out of groups in which a prefill runs."""
        preemptive = self.live.queue.order.preemptive
        loads = packer.picks.loads.by_group
        groups = [
            group for group, load in enumerate(loads) if preemptive or not load.rows
        ]
        spared = {pick.state.id for pick in packer.picks.prefills}
        most_s = DECODES_BESIDE * packer.budget_s
        packer.add_decodes(
            self.live.choose_decodes(groups, spared, now, most_s, together)
        )

    def _dispatch(
        self, packer: Packer, now: float, alone: bool, suspect: bool = False
    ) -> Batch:
        live = self.live
        picks = packer.picks
        for state, stop, _ in picks.prefills:
            live.kv.take(state, stop)
        if alone:
            picks.loads.value_alone()
        batch, flown = batch_of(
            next(self._batch_ids),
            picks,
            packer.budget_s,
            live.closing,
            live.kv.store,
            alone,
        )
        base_s = picks.loads.base_s()
        moving_s = picks.loads.moving_s()
        calibrated_s = picks.loads.calibrated_s()
        self._flights.append(
            Flight(batch, flown, base_s, moving_s, calibrated_s, alone, suspect, now)
        )
        prefilling = [pick.state for pick in picks.prefills]
        load_s = self._announcing.dispatching(picks, now)
        self.live.charge(
            [pick.state for pick in picks.decodes], picks.loads.decodes_s()
        )
        computed = [pick.state for pick in picks.prefills if not pick.loaded]
        slacks = [
            Slack(one.id, one.slack(now), one.drag * one.total_work_s)
            for one in computed
        ]
        for state, stop, _ in picks.decodes + picks.prefills:
            if state.milestones.scheduled_at is None:
                state.milestones.scheduled_at = now
            live.dispatched(state, stop)
        self._announcing.dispatched(prefilling, load_s, now)
        taken = self._turn.next(prefilling)
        self._totals.preemptions += len(taken)
        evicted = tuple(live.evicted)
        live.evicted.clear()
        self._totals.batches += 1
        self.record = BatchRecord(batch.id, tuple(slacks), tuple(taken), evicted)
        return batch
