"""The herald of a grid: makes its notices from its scheduler.

What a newcomer would wait is asked of the scheduler's own forecast (core/forecast.py), for several
amounts of work: under a policy that lets short prefills go first, a short one waits for less. So a
router needs to know nothing of policies. A tenant that has many requests here waits for its own
(core/shares.py), so the largest have waits of their own, and a router sends them elsewhere.
"""

from __future__ import annotations

import math
from collections import Counter
from heapq import nlargest
from itertools import islice

import msgspec

from medha_actors.core.group_load import GroupLoad
from medha_actors.core.page_keys import PageKey
from medha_actors.core.scheduler import Scheduler
from medha_actors.fleet.notices import Notice, Points, pack_names

_SHORTEST = 64  # tokens, of the prompts whose costs are told
_PER_OCTAVE = 2
_AMOUNTS = 6  # of work, for which the wait is told
_AMOUNTS_BESIDE = 4  # where there are several tenants
_TENANTS = 4  # whose waits are told: those with the most requests waiting
_LEAST_PACE = 0.05
_LOOKED_AT = 256  # waiting requests, for lateness
_MEMORY_S = 10.0  # the load's


class Herald:
    """`tell` once in a period; `whole` for those who have heard none of its notices."""

    def __init__(self, scheduler: Scheduler, slots: int) -> None:
        """`slots`: requests that may run at once (scheduler.max_running_requests). From now on the
        scheduler's page store keeps what comes and goes for this herald."""
        self._scheduler = scheduler
        self._slots = slots
        store = scheduler.live.kv.store
        self._news = store.news
        self._news.take()
        # in how many places a page is found
        self._places = Counter[PageKey]()
        for pages, tier in zip(store.groups, store.slots, strict=True):
            self._places.update(pages.page_of.keys())
            self._places.update(tier.slot_of.keys())
        self._lengths = _lengths(scheduler.max_tokens)
        self._told: dict[str, Points] = {}  # waits of tenants, the oldest first
        self._worked_s = (0.0, 0.0)
        self._told_at: float | None = None
        self._load = 0.0
        self._last: Notice | None = None
        self.draining = False

    def tell(self, now: float) -> Notice:
        """The next notice, with what is new since the one before."""
        came, gone = self._take_news()
        scheduler = self._scheduler
        live = scheduler.live
        queue = live.queue
        fill = self._decode_fill()
        pace = max(_LEAST_PACE, 1.0 - fill)
        costs = self._costs()
        late, late_s = self._late(now, pace)
        self._update_load(now, fill)
        kv = live.kv
        rooms = [kv.available(group) for group in range(scheduler.grid.groups)]
        self._last = Notice(
            serial=0 if self._last is None else self._last.serial + 1,
            whole=False,
            max_tokens=scheduler.max_tokens,
            page_tokens=kv.page_tokens,
            room_tokens=kv.page_tokens * sum(rooms),
            slots=self._slots - len(live.holding),
            live=len(live.by_id),
            costs=costs,
            waits=self._waits(costs, "", now),
            tenants=self._tenants(costs, now),
            pace=pace,
            load=self._load,
            queued=len(queue),
            late=late,
            late_s=late_s,
            draining=self.draining,
            came=pack_names(came),
            gone=pack_names(gone),
        )
        return self._last

    def whole(self, now: float) -> Notice:
        """The last notice (the first, if there was none), with all pages that there were."""
        last = self._last or self.tell(now)
        return msgspec.structs.replace(
            last, whole=True, came=pack_names(self._places), gone=b""
        )

    def _take_news(self) -> tuple[list[PageKey], list[PageKey]]:
        """Pages that are found now and were not, and the other way round."""
        came = []
        gone = []
        for key, change in self._news.take().items():
            before = self._places.get(key, 0)
            after = before + change
            if after:
                self._places[key] = after
                if not before:
                    came.append(key)
            elif before:
                del self._places[key]
                gone.append(key)
        return came, gone

    def _costs(self) -> Points:
        table = self._scheduler.table
        return tuple([(tokens, table.seconds(0, tokens)) for tokens in self._lengths])

    def _tenants(self, costs: Points, now: float) -> tuple[tuple[str, Points], ...]:
        """Of the largest, one anew each time: with many tenants, forecasts take long."""
        queue = self._scheduler.live.queue
        named = [name for name in queue.names if name]
        if len(named) > _TENANTS:
            named = nlargest(_TENANTS, named, key=lambda name: queue.of(name).waiting)
        self._told = {name: told for name, told in self._told.items() if name in named}
        untold = [name for name in named if name not in self._told]
        turn = next(iter(untold or self._told), None)  # whose are the oldest
        if turn is not None:
            self._told.pop(turn, None)
            self._told[turn] = self._waits(costs, turn, now)
        return tuple(self._told.items())

    def _waits(self, costs: Points, tenant: str, now: float) -> Points:
        amounts = (
            _AMOUNTS if self._scheduler.live.queue.tenants < 2 else _AMOUNTS_BESIDE
        )
        last = len(costs) - 1
        places = sorted(
            {round(last * number / (amounts - 1)) for number in range(amounts)}
        )
        prompts = [self._lengths[place] for place in places]
        waits = self._scheduler.waits(prompts, tenant, now)
        return tuple(
            [(costs[place][1], wait) for place, wait in zip(places, waits, strict=True)]
        )

    def _decode_fill(self) -> float:
        """Share of a batch's budget that the running decodes take, 0 to 1."""
        decoding = self._scheduler.live.decoding
        if not decoding:
            return 0.0
        groups = self._scheduler.grid.groups
        stages = self._scheduler.grid.stages
        # in each group, and with enough of them in each batch, an equal part
        rows = max(1, len(decoding) // (groups * stages))
        cached = sum([state.known for state in decoding.values()]) // (groups * stages)
        load = GroupLoad(rows=rows, spans=rows, decode_kv=cached, sampled=rows)
        return min(1.0, self._scheduler.model.predict(load) / self._scheduler.budget_s)

    def _late(self, now: float, pace: float) -> tuple[int, float]:
        """Of those who wait: how many will be late as things stand, and their work."""
        late = 0
        late_s = 0.0
        at = now
        groups = self._scheduler.grid.groups
        for state in islice(self._scheduler.live.queue.ordered(now), _LOOKED_AT):
            at += state.remaining_s / (groups * pace)
            if max(at, now + state.remaining_s / pace) > state.due_at:
                late += 1
                late_s += state.remaining_s
        return late, late_s

    def _update_load(self, now: float, fill: float) -> None:
        """Batches with prefill count whole, decodes alone as far as they fill their budget: with
        more to do, prefills would ride along."""
        model = self._scheduler.model
        worked_s = (model.prefill.worked_s, model.decode.worked_s)
        if self._told_at is not None and now > self._told_at:
            span_s = now - self._told_at
            with_prefill, alone = (
                (after - before) / (span_s * self._scheduler.grid.stages)
                for before, after in zip(self._worked_s, worked_s, strict=True)
            )
            kept = math.exp(-span_s / _MEMORY_S)
            filled = min(1.0, with_prefill + alone * fill)
            self._load = kept * self._load + (1 - kept) * filled
        self._worked_s = worked_s
        self._told_at = now


def _lengths(longest: int) -> list[int]:
    """Prompts whose costs are told: evenly spaced on a logarithmic scale, to the longest."""
    lengths = []
    tokens = float(_SHORTEST)
    while tokens < longest:
        lengths.append(int(tokens))
        tokens *= 2 ** (1 / _PER_OCTAVE)
    return [*lengths, longest]
