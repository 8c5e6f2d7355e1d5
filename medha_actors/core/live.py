"""The live requests, which of them wait, prefill, decode, and how they give way when the KV cache
is full."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Sequence

from medha_actors.config import SchedulerConfig
from medha_actors.core.chunking import PrefillTable
from medha_actors.core.decoding import Decoding, decode_rows
from medha_actors.core.hits import Hits
from medha_actors.core.kv_plan import Grid, KvPlan
from medha_actors.core.request import RequestState
from medha_actors.core.tenants import TenantQueues

# waiting requests whose hits are looked up again before one batch, at most
REFRESHED = 32


class LiveRequests:
    """Every live request is in `queue` until its prefill is wholly dispatched, then in `decoding`.

    `holding`: those with a reservation of KV. `ready`: those that may decode now, the
    longest-waiting first. `closing`: ids that the stages of each group have still to be told to
    forget.
    """

    def __init__(
        self,
        settings: SchedulerConfig,
        grid: Grid,
        table: PrefillTable,
        budget_s: float,
    ) -> None:
        """`budget_s`: of a batch."""
        self._grid = grid
        self._most_running = settings.max_running_requests
        self._table = table
        self.kv = KvPlan(grid)
        self.hits = Hits(self.kv, table)
        self.queue = TenantQueues(
            settings.policy, settings.order, settings.fairness, budget_s
        )
        self.by_id: dict[str, RequestState] = {}
        self.holding: dict[str, RequestState] = {}
        self.decoding = Decoding(grid)
        self.ready: dict[str, RequestState] = {}
        self.closing: list[list[str]] = [[] for _ in range(grid.groups)]
        self.evictions = 0
        # prompt tokens looked for and found at starts
        self.prefix_queries = self.prefix_hits = 0
        self.tier_queries = self.tier_hits = 0  # the same in the second tier
        # (who lost its KV, for whom) since the last batch
        self.evicted: list[tuple[str, str]] = []
        # a heap of ids; those that have ended leave it late
        self._timeouts: list[tuple[float, int, str]] = []

    def add(self, state: RequestState) -> None:
        """A new request waits."""
        self.by_id[state.id] = state
        self.queue.put(state)
        if state.timeout_at < math.inf:
            heapq.heappush(self._timeouts, (state.timeout_at, state.serial, state.id))

    def next_timeout(self) -> RequestState | None:
        """The live request whose timeout comes first."""
        while self._timeouts:
            _, serial, request_id = self._timeouts[0]
            state = self.by_id.get(request_id)
            if state is not None and state.serial == serial:
                return state
            heapq.heappop(self._timeouts)
        return None

    def dispatched(self, state: RequestState, stop: int) -> None:
        """The positions below `stop` are on their way."""
        start = state.dispatched
        prefill = state.prefilling
        state.dispatched = stop
        self.ready.pop(state.id, None)
        if not prefill:
            return
        if state.id not in self.holding:
            self._begin(state, start)
        left_s = self._table.load_s(*state.work) if state.prefilling else 0.0
        self.queue.served(state, state.load_s - left_s)
        if state.prefilling:
            state.load_s = left_s
            state.remaining_s = self._table.seconds(*state.work)
            self.queue.put(state)
        else:
            self.queue.remove(state)
            self.decoding.start(state)

    def charge(self, decodes: Sequence[RequestState], seconds: float) -> None:
        """What a batch gives those that decode is their tenants', as long as anybody waits."""
        if len(self.queue.shares) < 2 or not decodes:
            return
        for tenant, rows in Counter([state.tenant for state in decodes]).items():
            self.queue.charged(tenant, seconds * rows / len(decodes))

    def computed(self, state: RequestState, stop: int, loaded: int) -> None:
        """The positions below `stop` have come back, the last of them from the second tier."""
        if loaded:
            self.tier_hits += 0 if state.dropped else loaded
            state.loaded(stop - loaded, stop)
        state.computed = stop
        self.hits.published(self.kv.publish(state))
        if stop < state.goal:
            self.hits.lead(state)
        else:
            self.hits.cease(state)

    def remove(self, state: RequestState, sound: bool = True) -> None:
        """A request has ended. What it has computed can be found by others if it is `sound`."""
        self.by_id.pop(state.id, None)
        self.queue.remove(state)
        if not sound:
            self.kv.withdraw(state)
        self._let_go(state)

    def refresh(self) -> None:
        """Value waiting requests anew whose hits have changed."""
        for state in self.hits.refresh(REFRESHED):
            self._value(state)

    def evict(self, state: RequestState) -> None:
        """Drop a request's KV; it waits for the prefill of everything known of it."""
        self.evictions += 1
        self._let_go(state)
        state.drop_cache()
        self._requeue(state)

    def restart(self, lost: Collection[int], found: Collection[int] = ()) -> None:
        """The stages know nobody any more, and the KV of the groups in `lost` is gone, with their
        second tiers but for those in `found`.

        Who has a piece there starts over with everything known; the others go on from what has been
        computed.
        """
        self.closing = [[] for _ in range(self._grid.groups)]
        self.ready.clear()
        dropped = list[RequestState]()
        for state in list(self.holding.values()):
            was_decoding = self.decoding.stop(state)
            if any(piece.group in lost for piece in state.pieces):
                self.hits.cease(state)
                self.kv.release(state)
                self.holding.pop(state.id)
                state.drop_cache()
                dropped.append(state)
                continue
            state.rewind()
            if state.prefilling:
                self._requeue(state)
                continue
            if was_decoding:
                self.decoding.start(state)
            self.ready[state.id] = state
        self.kv.store.restart(lost, found)
        for state in dropped:
            self._requeue(state)

    def revalue(self) -> None:
        """Estimate all waiting work again: the predictor has changed its mind."""
        for state in list(self.queue.ordered(0.0)):
            self._value(state)

    def running(self) -> list[int]:
        """Decoding requests that hold a piece in each group."""
        return list(self.decoding.by_group)

    def choose_decodes(
        self,
        groups: Collection[int],
        spared: Collection[str],
        now: float,
        most_s: float,
        together: bool,
    ) -> list[RequestState]:
        """Ready requests for one batch (`together`: for the only one), with room for their next
        token, all of whose pieces are in `groups`. Beside a prefill that an advance pays for,
        decodes of those who have more than their share, or ask for it, take at most `most_s` of it.

        When a group is full, the request with the most slack yields; those in `spared` never do.
        """
        stages = 1 if together else self._grid.stages
        left = [decode_rows(count, stages) for count in self.decoding.by_group]
        chosen = []
        first = self.queue.hurried(now) if self.ready else None
        if first is not None and not self._may_begin(first):
            first = None  # it waits for the ends of others: they are not to be put off
        held_rows = 0 if first is None else self._rows_within(most_s)
        for state in list(self.ready.values()):
            held = first is not None and self._makes_way(state, first)
            if held and held_rows <= 0:
                continue
            if not state.pieces or state.danger:  # none: it has yielded meanwhile
                continue
            if not _has_rows(state, left, groups):
                continue
            pieces = list(state.pieces)
            if self.make_room(state, spared, now):
                chosen.append(state)
                held_rows -= held
                for piece in pieces:
                    left[piece.group] -= 1
        return [state for state in chosen if state.pieces]

    def _may_begin(self, state: RequestState) -> bool:
        """Whether a prefill has begun, or there is room for it in a group."""
        if state.pieces:
            return True
        if len(self.holding) >= self._most_running:
            return False
        pages = -(-state.goal // self._grid.page_tokens)
        return any(
            self.kv.available(group) >= pages for group in range(self._grid.groups)
        )

    def _makes_way(self, state: RequestState, first: RequestState) -> bool:
        """Whether a decode is held back for a prefill of another tenant that is paid for."""
        if state.tenant == first.tenant:
            return False
        return self.queue.shares.wants(state.tenant, self.queue.quantum_s)

    def _rows_within(self, seconds: float) -> int:
        """How many of those that are ready one batch can take in so many seconds beside others'
        prefills; at least one."""
        known = sum([state.known for state in self.ready.values()]) // len(self.ready)

        def fits(rows: int) -> bool:
            return self._table.decodes_s(rows, rows * known) <= seconds

        rows = len(self.ready)
        return (
            bisect_left(range(1, rows + 1), True, key=lambda count: not fits(count))
            or 1
        )

    def make_room(
        self, state: RequestState, spared: Collection[str], now: float
    ) -> bool:
        """Take the page that a decode's next token may need; False: the request had to yield."""
        pieces = len(state.pieces)
        while (group := self.kv.grow(state)) is not None:
            victim = self._most_patient(group, spared, now) or state
            self.evict(victim)
            self.evicted.append((victim.id, state.id))
            if victim is state:
                return False
        if len(state.pieces) > pieces:
            self.decoding.grown(state)
        return True

    def _most_patient(
        self, group: int, spared: Collection[str], now: float
    ) -> RequestState | None:
        """Of those whose end would free pages of a group, the one with the most slack."""
        rivals = []
        for other in self.holding.values():
            if other.id not in spared and self.kv.frees(other, group):
                rivals.append(other)

        def patience(other: RequestState) -> tuple[float, int]:
            return self._slack_after(other, now), other.serial

        return max(rivals, key=patience, default=None)

    def _slack_after(self, state: RequestState, now: float) -> float:
        """Slack of a request if its KV were dropped now: the recomputation counts."""
        stored = state.published * self._grid.page_tokens if self.kv.store.tiered else 0
        stored = self._table.worth(0, stored, state.known)
        again_s = state.drag * self._table.seconds(0, state.known, stored)
        return state.due_at - state.grace_s - now - again_s

    def _let_go(self, state: RequestState) -> None:
        self.decoding.stop(state)
        self.hits.leave(state)
        self.hits.cease(state)
        for piece in state.pieces:
            if piece.opened:
                self.closing[piece.group].append(state.id)
        self.kv.release(state)
        for place in (self.holding, self.ready):
            place.pop(state.id, None)

    def _begin(self, state: RequestState, start: int) -> None:
        """A request's first span is on its way, from behind what was found in the cache."""
        self.holding[state.id] = state
        if state.keys is not None and not state.epoch:
            self.prefix_queries += state.prompt
            self.prefix_hits += start
            self.tier_queries += state.prompt - start if self.kv.store.tiered else 0
        if start != state.hit:  # more has been found than it was valued with, or less
            state.load_s = self._table.load_s(start, state.goal, state.stored)
        state.begin(start)
        state.total_work_s = self._table.seconds(state.hit, state.goal, state.stored)
        self.hits.leave(state)
        self.hits.lead(state)

    def _requeue(self, state: RequestState) -> None:
        if not state.pieces:
            self.hits.look(state)
        self._value(state)

    def _value(self, state: RequestState) -> None:
        """The seconds of a prefill that is not wholly dispatched; what is cached costs none."""
        state.total_work_s = self._table.seconds(state.hit, state.goal, state.stored)
        state.remaining_s = self._table.seconds(*state.work)
        state.load_s = self._table.load_s(*state.work)
        self.queue.put(state)


def _has_rows(
    state: RequestState, left: Sequence[int], groups: Collection[int]
) -> bool:
    """Whether each group that holds a piece takes one more decode; `left`: how many each does."""
    for piece in state.pieces:  # noqa: SIM110  (asked for every decode: half as long)
        if not left[piece.group] or piece.group not in groups:
            return False
    return True
