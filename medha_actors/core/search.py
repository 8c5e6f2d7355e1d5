"""What is computed of a sequence already: in pages side by side, and behind them in the second
tier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from medha_actors.core.page_keys import PageKey, PageKeys
from medha_actors.core.page_store import PageStore

LOOKED_UP = 128  # pages at a time

Find = Callable[
    [Sequence[PageKey]], list[int]
]  # pages or slots, as far as there are any


class Stretch(NamedTuple):
    """Computed pages of one group, side by side in a sequence, from position `start` on. No pages,
    if the group has the sequence in its second tier alone."""

    group: int
    start: int
    pages: list[int]


class Hit(NamedTuple):
    """The first `tokens` of a sequence are computed already: these stretches, in order. What
    follows is in the second tier of the last one's group, up to `stored`."""

    tokens: int
    stretches: tuple[Stretch, ...]
    stored: int


NO_HIT = Hit(0, (), 0)


class Search:
    """Finds hits in the pages and slots of all groups."""

    def __init__(self, store: PageStore, page_tokens: int, cutoff: int) -> None:
        """`cutoff`: tokens of a piece that another group's follows."""
        self._store = store
        self._page_tokens = page_tokens
        self._cutoff = cutoff
        count = len(store.groups)
        self._pages_in: list[Find] = [
            partial(store.reach, group) for group in range(count)
        ]

    def hits(self, keys: PageKeys, limit: int) -> list[Hit]:
        """What is computed of the first `limit` tokens of a sequence: the longest hit that begins
        in each group, where there is one; the longest first."""
        hits = []
        for group in range(len(self._store.groups)):
            hit = self._hit(keys, limit // self._page_tokens, group)
            if hit.stored:
                hits.append(hit)
        return sorted(hits, key=lambda hit: -hit.tokens)

    def stored(self, keys: PageKeys, start: int, limit: int, group: int) -> int:
        """How many pages a group has in its second tier, side by side from the start-th of a
        sequence on and before the limit-th."""
        return len(self._reach(keys, start, limit, self._store.slots[group].reach))

    def _hit(self, keys: PageKeys, limit: int, group: int) -> Hit:
        """What can be used of the first `limit` pages of a sequence by a request whose first piece
        is in `group`."""
        stretches = self._stretches(keys, limit, group)
        count = sum([len(stretch.pages) for stretch in stretches])
        stored = count
        if self._store.tiered:
            last = stretches[-1] if stretches else Stretch(group, 0, [])
            if max(1, len(stretches)) < len(
                self._store.groups
            ):  # the piece ends at the cutoff
                limit = min(limit, (last.start + self._cutoff) // self._page_tokens)
            stored += self.stored(keys, count, limit, last.group)
            if not stretches and stored:
                stretches.append(last)
        return Hit(
            count * self._page_tokens, tuple(stretches), stored * self._page_tokens
        )

    def _stretches(self, keys: PageKeys, limit: int, group: int) -> list[Stretch]:
        """The pages of the hit that begins in `group`. It goes on in another group where a piece
        may end."""
        least = -(-self._cutoff // self._page_tokens)  # of a piece that is not the last
        others = [other for other in range(len(self._store.groups)) if other != group]
        stretches: list[Stretch] = []
        start = 0
        pages = self._reach(keys, 0, limit, self._pages_in[group])
        while pages:
            end = start + len(pages)
            following: dict[int, list[int]] = {}
            edges = (start + least, end) if len(pages) >= least else ()
            for edge in edges:  # sooner, if that leads at least as far
                following = {
                    other: self._reach(keys, edge, limit, self._pages_in[other])
                    for other in others
                }
                longest = max(map(len, following.values()), default=0)
                if longest and edge + longest >= end:
                    break
            else:
                stretches.append(Stretch(group, start * self._page_tokens, pages))
                break
            stretches.append(
                Stretch(group, start * self._page_tokens, pages[: edge - start])
            )
            group = max(others, key=lambda other: len(following[other]))
            others.remove(group)
            start = edge
            pages = following[group]
        return stretches

    def _reach(self, keys: PageKeys, start: int, limit: int, find: Find) -> list[int]:
        """What there is side by side, from the start-th page of a sequence on."""
        pages: list[int] = []
        while start < limit:
            some = keys.some(start, min(limit, start + LOOKED_UP))
            found = find(some)
            pages += found
            start += len(some)
            if len(found) < len(some):
                break
        return pages
