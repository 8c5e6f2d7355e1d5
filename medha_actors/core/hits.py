"""What waiting requests would find in the cache, and whose prefill they had better wait for.

Looked up on arrival and again at the start; in between only where something has changed: the page a
request misses was published, or the deepest it found is gone. What it found is the last to be
evicted while it waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from medha_actors.core.chunking import PrefillTable
from medha_actors.core.kv_plan import KvPlan
from medha_actors.core.page_keys import PageKey
from medha_actors.core.request import RequestState
from medha_actors.core.search import NO_HIT, Hit

Waiters = dict[int, RequestState]  # by serial, the longest-waiting first


class _Found(NamedTuple):
    """What a waiting request has found: these pages; the page it would need next, if that could
    come from the cache; and the deepest it would load from the second tier."""

    state: RequestState
    keys: list[PageKey]
    missing: PageKey | None
    stored: PageKey | None

    def places(self) -> tuple[PageKey | None, PageKey | None]:
        """What it would notice the loss of."""
        return _last(self.keys), self.stored


class Hits:
    """The hits of waiting requests, and the leaders: requests that compute a page next which others
    wait for."""

    def __init__(self, kv: KvPlan, table: PrefillTable) -> None:
        self._kv = kv
        self._table = table
        self._found: dict[int, _Found] = {}  # by serial
        self._missing: dict[PageKey, Waiters] = {}
        self._deepest: dict[PageKey, Waiters] = {}
        self._stale: Waiters = {}
        self._leaders: dict[PageKey, RequestState] = {}
        self._leading: dict[int, PageKey] = {}  # by serial
        # follower: leader, tokens both begin with
        self._common: dict[int, tuple[int, int]] = {}

    def look(self, state: RequestState) -> None:
        """Set the hit of a waiting request to what is in the cache now."""
        self._unregister(state)
        if state.keys is None:
            return
        hit = self._best(state)
        state.hit = hit.tokens
        state.stored = self._table.worth(hit.tokens, hit.stored, state.goal)
        count = state.hit // self._kv.page_tokens
        keys = state.keys.known(count)
        self._kv.store.want(keys)
        missing = None
        if state.hit + self._kv.page_tokens <= state.hit_limit:
            missing = state.keys[count]
            self._missing.setdefault(missing, {})[state.serial] = state
        found = _Found(state, keys, missing, self._touch(state, hit))
        for key in found.places():
            if key is not None:
                self._deepest.setdefault(key, {})[state.serial] = state
        self._found[state.serial] = found

    def leave(self, state: RequestState) -> None:
        """A request waits no longer."""
        self._unregister(state)
        self._stale.pop(state.serial, None)
        self._common.pop(state.serial, None)

    def finders(self) -> Iterator[RequestState]:
        """Waiting requests that have found something, in order of arrival."""
        return (found.state for found in self._found.values() if found.keys)

    def published(self, keys: list[PageKey]) -> None:
        """These pages can be found from now on."""
        for key in keys:
            self._stale.update(self._missing.get(key, {}))

    def refresh(self, limit: int) -> list[RequestState]:
        """Look again for up to `limit` requests whose hits have changed, and return them."""
        store = self._kv.store
        for key in store.lost:
            self._stale.update(self._deepest.get(key, {}))
        store.lost.clear()
        changed = list(self._stale.values())[:limit]
        for state in changed:
            del self._stale[state.serial]
            self.look(state)
        return changed

    def lead(self, state: RequestState) -> None:
        """A request's prefill has begun or moved on: others may wait for its next page."""
        self.cease(state)
        page = state.computed // self._kv.page_tokens
        if state.keys is None or (page + 1) * self._kv.page_tokens > state.goal:
            return
        key = state.keys[page]
        if key not in self._leaders:
            self._leaders[key] = state
            self._leading[state.serial] = key

    def cease(self, state: RequestState) -> None:
        """A request computes no more pages for others."""
        key = self._leading.pop(state.serial, None)
        if key is not None:
            del self._leaders[key]

    def leader_of(self, state: RequestState, returned_s: float) -> RequestState | None:
        """The request whose prefill a waiting one had better wait for, as it is sooner done.

        While the leader has pages of both to dispatch it is: it is ahead, and gets the turns of all
        who wait for it. (Unless it computes what the other can load.) Later, if the wait for what
        is on its way (`returned_s`) and the rest take no longer than computing all that is missing.
        """
        if state.serial in self._stale:
            self.look(state)
        found = self._found.get(state.serial)
        leader = None if found is None else self._leaders.get(found.missing or b"")
        if leader is None:
            return None
        common = self._common_tokens(state, leader)
        ahead_s = 0.0
        if leader.dispatched < common:
            if state.stored <= state.hit or leader.dispatched < leader.stored:
                return leader
            ahead_s = self._table.seconds(leader.dispatched, common)
        wait_s = (
            returned_s + ahead_s + self._table.seconds(common, state.goal, state.stored)
        )
        alone_s = self._table.seconds(state.hit, state.goal, state.stored)
        return leader if wait_s <= alone_s else None

    def _best(self, state: RequestState) -> Hit:
        """The hit that leaves the least to do."""
        assert state.keys is not None
        hits = self._kv.search.hits(state.keys, state.hit_limit)
        if not hits:
            return NO_HIT
        if len(hits) == 1 or not self._kv.store.tiered:
            return hits[0]

        def seconds(hit: Hit) -> float:
            stored = self._table.worth(hit.tokens, hit.stored, state.goal)
            return self._table.seconds(hit.tokens, state.goal, stored)

        return min(hits, key=seconds)

    def _touch(self, state: RequestState, hit: Hit) -> PageKey | None:
        """Let what a request would load be the last to give way in the second tier, its deepest
        page first of that; returns the key of this one."""
        first = state.hit // self._kv.page_tokens
        last = state.stored // self._kv.page_tokens
        if first >= last or state.keys is None:
            return None
        slots = self._kv.store.slots[hit.stretches[-1].group]
        for index in reversed(range(first, last)):
            slots.touch(state.keys[index])
        return state.keys[last - 1]

    def _unregister(self, state: RequestState) -> None:
        found = self._found.pop(state.serial, None)
        if found is None:
            return
        self._kv.store.unwant(found.keys)
        entries = [(self._missing, found.missing)]
        entries += [(self._deepest, key) for key in found.places()]
        for places, key in entries:
            if key is not None:
                del places[key][state.serial]
                if not places[key]:
                    del places[key]

    def _common_tokens(self, state: RequestState, leader: RequestState) -> int:
        """How many tokens both begin with, in whole pages that the follower may take."""
        known = self._common.get(state.serial)
        if known is not None and known[0] == leader.serial:
            return known[1]
        low = state.hit
        high = min(state.hit_limit, leader.goal)
        if state.tokens(low, high) == leader.tokens(low, high):
            low = high
        while high - low > 1:  # equal up to low, not up to high
            middle = (low + high) // 2
            if state.tokens(low, middle) == leader.tokens(low, middle):
                low = middle
            else:
                high = middle
        common = low - low % self._kv.page_tokens
        self._common[state.serial] = leader.serial, common
        return common


def _last(keys: list[PageKey]) -> PageKey | None:
    return keys[-1] if keys else None
