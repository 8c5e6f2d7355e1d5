"""What goes into the next batch (paper, 4.2 and 4.3): decodes first, then prefill chunks into the
time budget.

Each prefill, in the policy's order, gets the largest chunk whose predicted batch time still fits,
in every group it touches: of tokens to compute, or of pages to load from the second tier. Space
sharing: a long prefill leaves a part of the budget, growing with its relative slack, to the short
ones behind it; what they do not use it takes back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from medha_actors.config import SchedulerConfig
from medha_actors.core.chunking import LONE_BUDGETS
from medha_actors.core.kv_plan import Grid, holders
from medha_actors.core.picks import Pick, Picks
from medha_actors.core.placement import Placement
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.request import RequestState
from medha_actors.core.room import Room
from medha_actors.core.sharing import LONG_BUDGETS, long_limit_s, share_of
from medha_actors.core.tenants import KEPT_FREE, TenantQueues

# the packer gives up after 8 prefills that do not fit or 64 barred ones: bounds its time
PATIENCE = 64
MISFIT = 8  # of it, for one that does not fit
FOLLOWERS = 256  # and after so many that wait for the pages of others
FEW = 4  # requests that are looked at one by one


class Packer:
    """One batch in the making: picks, and what they amount to in every group."""

    def __init__(
        self,
        config: SchedulerConfig,
        grid: Grid,
        model: ExecutionModel,
        placement: Placement,
        now: float,
        budget_s: float,
    ) -> None:
        self._config = config
        self._grid = grid
        self._model = model
        self._now = now
        self._placement = placement
        self._kv = placement.kv
        self.budget_s = budget_s
        self.picks = Picks(model, placement.kv, config.max_batch_tokens)
        self._room = Room(config, self.picks.loads, placement.table)
        # what is left in each group of begun prefills that go first
        self._ahead_s = [0.0] * grid.groups
        # groups that take no further prefill in this batch
        self._shut: set[int] = set()
        self._long_groups: set[int] = set()
        self._slots = 0  # requests that may start
        self._headroom = [0] * grid.groups  # pages to leave in each group
        self._alone = False
        self._patient: Sequence[RequestState] = ()
        self._first_s = budget_s  # the limit of the batch's first prefill
        self._idle = False
        self._full = False  # no request can be started: KV or slots have run out
        # not started for the sake of others' hits
        self._sparing: list[RequestState] = []
        self._yielding: list[int] = []  # indices of the prefills that left room

    def add_decodes(self, states: Iterable[RequestState]) -> None:
        """What these ready requests have to compute before their next draw: one token, or with
        forced ones a few. Of the latter as many as the budget has room for, and one at least."""
        forced: list[RequestState] = []
        rows = 0
        for state in states:
            tokens = state.known - state.dispatched
            if rows and rows + tokens > self._config.max_batch_tokens:
                continue  # it is among the first of the next batch
            rows += tokens
            if tokens > 1:
                forced.append(state)
                continue
            self.picks.add_decode(state)
        self.picks.loads.value_decodes()
        for state in forced:
            self._add_forced(state, needed=state is forced[0])

    def _add_forced(self, state: RequestState, needed: bool) -> None:
        start = state.dispatched
        loads = self.picks.loads.with_chunk(
            holders(state, start), state.known, start, state.known - start
        )
        if (
            needed
            or self.picks.loads.corrected_s(loads) <= self.budget_s / self._model.margin
        ):
            self.picks.loads.take(loads)
            self.picks.decodes.append(Pick(state, state.known))

    def add_prefills(
        self,
        queue: TenantQueues,
        *,
        slots: int,
        headroom: list[int],
        live: Collection[RequestState],
        decoding: bool,
        idle: bool,
        returned_s: float = 0.0,
    ) -> None:
        """Fill the budget, and reserve the KV of the requests that start.

        `slots`: how many may start; `headroom`: pages to leave in each group; `live`: all requests;
        `decoding`: some of them wait for their next tokens; `idle`: nothing is on its way;
        `returned_s`: predicted seconds until what is on its way is back. The first prefill gets
        `min_chunk_tokens` even if they do not fit, so that prefill always moves on. Half of the
        batches take longer than predicted; where others wait for their tokens, nine in ten are to
        keep to the budget.
        """
        self._allow(slots, headroom)
        limit_s = self.budget_s / self._model.margin
        self._alone = len(live) == 1
        if not decoding and len(live) <= FEW:
            self._patient = tuple(live)
        self._idle = idle
        patience = PATIENCE
        offered = set[int]()
        followers = 0
        for state in self._candidates(queue):
            if (
                patience <= 0
                or followers > FOLLOWERS
                or len(self._shut) == self._grid.groups
            ):
                break
            taker = state
            if not state.pieces:
                leader = self._placement.hits.leader_of(state, returned_s)
                if leader is not None:  # it gets the turn of those who wait for it
                    followers += 1
                    taker = leader
            if taker.prefilling and not taker.at_danger and taker.serial not in offered:
                offered.add(taker.serial)
                self._goes_ahead(taker)
                patience -= self._offer(taker, queue, limit_s)
        if self._sparing and not self.picks.prefills and not self.picks.decodes:
            self._offer(self._sparing[0], queue, limit_s, sparing=False)
        for index in self._yielding:
            self._top_up(index, limit_s)

    def _goes_ahead(self, state: RequestState) -> None:
        """A prefill gets its turn: if it has begun, those behind it wait for what is left of it in
        the groups that it touches next."""
        if self._grid.groups > 1 and state.pieces:
            for piece, _ in holders(state, state.dispatched):
                self._ahead_s[piece.group] += state.remaining_s

    def can_start(
        self, state: RequestState, *, slots: int, headroom: list[int]
    ) -> bool:
        """Whether there is room for this request's prefill, or it has begun already."""
        if state.pieces:
            return True
        self._allow(slots, headroom)
        placed = self._place(state)
        self._unplace(state)
        return placed

    def add_alone(self, state: RequestState) -> None:
        """The next chunk of a request that can start, for a batch with nothing else in it."""
        if not state.pieces:
            self._place(state)
            self._kv.reserve(state, state.pieces)
        limit_s = self.budget_s / self._model.margin
        self.picks.add_chunk(state, self._chunk(state, limit_s, only=False))

    def _allow(self, slots: int, headroom: list[int]) -> None:
        self._slots = slots
        self._headroom = headroom

    def _candidates(self, queue: TenantQueues) -> Iterator[RequestState]:
        """The queue in order; once nobody can start, only the prefills that have."""
        return (state for state in self._in_order(queue) if not state.at_danger)

    def _in_order(self, queue: TenantQueues) -> Iterator[RequestState]:
        seen = set()
        for state in queue.ordered(self._now, more=lambda: not self.picks.prefills):
            if self._full and not state.pieces:
                rest = []
                for serial, other in queue.started.items():
                    if serial not in seen:
                        rest.append(other)
                yield from sorted(rest, key=lambda other: queue.key(other, self._now))
                return
            seen.add(state.serial)
            yield state

    def _offer(
        self,
        state: RequestState,
        queue: TenantQueues,
        limit_s: float,
        sparing: bool = True,
    ) -> int:
        """Take a chunk of this request if it fits. Returns the patience it has cost in vain.

        `sparing`: not if it would spoil the hits of others.
        """
        fresh = not state.pieces
        long = queue.order.shares and self._is_long(state)
        closed = self._shut | self._long_groups if long else self._shut
        if fresh:
            cost = self._try_place(state, queue, closed, sparing)
            if cost is not None:
                return cost
        touched = [piece.group for piece, _ in holders(state, state.dispatched)]
        stored = self._placement.stored(state)
        loading = stored > state.dispatched
        groups = {touched[-1]} if loading else set(touched)
        barred = bool(groups & closed)
        share = self._share(state, queue) if long else 1.0
        if not self.picks.prefills and self._hurts_nobody(state):
            limit_s = self.budget_s * LONE_BUDGETS
        room_s = (self._limit(limit_s) if long else limit_s) * share
        tokens = 0
        if not barred and loading:
            tokens = self._loadable(touched[-1], stored - state.dispatched, room_s)
        elif not barred:
            tokens = self._chunk(state, room_s, only=len(queue) == 1)
        if not tokens:
            if fresh:
                self._unplace(state)
            if not barred and not long and not loading and not state.dispatched:
                self._shut |= groups  # the cheapest tokens there are do not fit here
            return 1 if barred else MISFIT
        if fresh:
            self._kv.reserve(state, state.pieces)
            self._slots -= 1
        if not self.picks.prefills:
            self._first_s = limit_s
        if loading:
            self.picks.add_pages(state, stored, tokens)
        else:
            if share < 1:
                self._yielding.append(len(self.picks.prefills))
            self.picks.add_chunk(state, tokens)
        if long:
            self._long_groups |= groups
        if not queue.order.preemptive and self.picks.prefills[-1].stop < state.goal:
            self._shut |= groups
        return 0

    def _try_place(
        self, state: RequestState, queue: TenantQueues, closed: set[int], sparing: bool
    ) -> int | None:
        """Pieces for a request that has none; the patience it has cost if it gets none now."""
        if self._slots > 0 and len(closed) == self._grid.groups:
            # wherever its hits are: looking for them is most of an offer's cost
            return 1
        kept = 0
        if queue.yields(state):
            kept = self._config.max_running_requests // KEPT_FREE
        if self._slots <= kept or not self._place(state):
            self._full = True
            return 0
        if sparing and self._placement.spoils(state, self._now):
            self._unplace(state)
            self._sparing.append(state)
            return 1
        return None

    def _is_long(self, state: RequestState) -> bool:
        return state.total_work_s > LONG_BUDGETS * self.budget_s

    def _hurts_nobody(self, state: RequestState) -> bool:
        """Whether a longer batch for this prefill delays nobody's tokens, no short prefill, and no
        other tenant's turn."""
        return bool(self._patient) and all(
            other is state or (self._is_long(other) and other.tenant == state.tenant)
            for other in self._patient
        )

    def _share(self, state: RequestState, queue: TenantQueues) -> float:
        """Of the budget, that a long prefill keeps."""
        return share_of(self._config, state, self._now) if len(queue) > 1 else 1.0

    def _limit(self, limit_s: float) -> float:
        """What a long prefill may fill the batch up to."""
        if self._alone:
            return limit_s
        return long_limit_s(self._config, self._model, self.picks, limit_s)

    def _place(self, state: RequestState) -> bool:
        """Give a request pieces to try: otherwise equal, on the groups with the least to do in this
        batch, then with the most room."""
        if self._slots <= 0:
            return False
        groups = list(range(self._grid.groups))
        if len(groups) > 1:
            seconds = self.picks.loads.seconds
            groups.sort(
                key=lambda g: (g in self._shut, seconds[g], -self._kv.available(g))
            )
        ahead_s = [
            sum(both)
            for both in zip(self._ahead_s, self.picks.loads.seconds, strict=True)
        ]
        start = self._placement.choose(state, groups, self._headroom, ahead_s)
        if start is None:
            return False
        state.pieces = start.pieces
        state.dispatched = state.computed = start.hit
        return True

    def _unplace(self, state: RequestState) -> None:
        state.pieces = []
        state.dispatched = state.computed = 0

    def _chunk(self, state: RequestState, limit_s: float, only: bool) -> int:
        """Tokens of the next chunk within `limit_s`; 0: none fit."""
        first = not self.picks.prefills
        return self._room.chunk(
            state, limit_s, only=only, first=first, alone=self._alone and self._idle
        )

    def _top_up(self, index: int, limit_s: float) -> None:
        """What the short prefills left of the budget goes back to a long one that yielded."""
        state, stop, _ = self.picks.prefills[index]
        limit_s = self._limit(self._first_s if index == 0 else limit_s)
        more = self._room.more(state, stop, limit_s, first=index == 0)
        if more:
            self.picks.extend(index, more)

    def _loadable(self, group: int, tokens: int, limit_s: float) -> int:
        """As many of the next tokens, all of which a group has in its second tier, as can be loaded
        within `limit_s`: whole pages. At least one page if the batch has no prefill yet."""
        page = self._kv.page_tokens
        return page * self._room.pages(
            group, tokens // page, limit_s, first=not self.picks.prefills
        )
