"""The pages of every KV group: who uses them, and what is in them.

A page has a number of users. Those who share one have found it by its key and only ever read it; a
page that is written to has one user and no key. A page with a key outlives its users: it is idle
until somebody finds it again, or until its room is needed. Then the page that was used longest ago
goes first, and of those given back together the deepest, so that what is left of a sequence is
always its beginning. Idle pages that a waiting request has found go last. Where there is a second
tier, what was in a page that goes can be read back from there (GroupSlots).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from itertools import repeat

from medha_actors.core.batch import Batch
from medha_actors.core.page_keys import PageKey
from medha_actors.core.page_news import News
from medha_actors.core.page_slots import GroupSlots

_NONE = -1  # instead of a page's number


class GroupPages:
    """The pages of one group."""

    __slots__ = ("free", "idle", "kept", "key_of", "page_of", "users")

    def __init__(self, pages: int) -> None:
        self.free = list(range(pages - 1, -1, -1))
        self.users = [0] * pages
        self.key_of: list[PageKey | None] = [None] * pages
        self.page_of: dict[PageKey, int] = {}
        self.idle: OrderedDict[int, None] = OrderedDict()  # longest unused first
        # the same, wanted by waiting requests
        self.kept: OrderedDict[int, None] = OrderedDict()

    def rest(self, page: int, wanted: bool) -> None:
        """Nobody uses this page any more."""
        if self.key_of[page] is None:
            self.free.append(page)
        elif wanted:
            self.kept[page] = None
        else:
            self.idle[page] = None

    def wake(self, page: int) -> None:
        """Somebody is about to use this page."""
        self.idle.pop(page, None)
        self.kept.pop(page, None)


class PageStore:
    """Pages by group and number, and by group and key."""

    def __init__(
        self, groups: int, pages_per_group: int, slots_per_group: int = 0
    ) -> None:
        self.groups = [GroupPages(pages_per_group) for _ in range(groups)]
        # a single slot would have to give way for the page that it is loaded into
        self.tiered = slots_per_group > 1
        self.news = News()
        self.slots = [GroupSlots(slots_per_group, self.news) for _ in range(groups)]
        self._wanted: dict[PageKey, int] = {}  # how many waiting requests have found it
        # wanted ones that went nevertheless, and what went from slots; whoever reads clears it
        self.lost: list[PageKey] = []

    def available(self, group: int) -> int:
        """Pages that nobody uses."""
        pages = self.groups[group]
        return len(pages.free) + len(pages.idle) + len(pages.kept)

    def free(self, group: int) -> int:
        """Those of them with nothing in them."""
        return len(self.groups[group].free)

    def kept(self, group: int) -> int:
        """Those that waiting requests count on."""
        return len(self.groups[group].kept)

    def cached(self, group: int) -> int:
        """Pages with a key, used or not."""
        return len(self.groups[group].page_of)

    def take(self, group: int) -> int:
        """A page for one user to write to; there must be one available."""
        pages = self.groups[group]
        if pages.free:
            page = pages.free.pop()
        else:
            page, _ = (pages.idle or pages.kept).popitem(last=False)
            key = self._forget(pages, page)
            gone = self.slots[group].keep(page, key) if self.tiered else None
            if gone is not None:
                self.lost.append(gone)
        pages.users[page] = 1
        return page

    def share(self, group: int, shared: Iterable[int]) -> None:
        """One more user for each of these pages, all of which have a key."""
        pages = self.groups[group]
        for page in shared:
            if not pages.users[page]:
                pages.wake(page)
            pages.users[page] += 1

    def give_back(self, group: int, used: Iterable[int]) -> None:
        """One user less for each of these pages. The deepest must come first."""
        pages = self.groups[group]
        for page in used:
            pages.users[page] -= 1
            if not pages.users[page]:
                pages.rest(page, pages.key_of[page] in self._wanted)

    def unused(self, group: int, pages: Sequence[int]) -> int:
        """How many of these pages nobody uses."""
        return list(map(self.groups[group].users.__getitem__, pages)).count(0)

    def users(self, group: int, page: int) -> int:
        """How many requests use a page."""
        return self.groups[group].users[page]

    def reach(self, group: int, keys: Sequence[PageKey]) -> list[int]:
        """The pages with these keys, from the first on as far as the group has them. (A decision
        asks for thousands: no loop of our own.)"""
        pages = list(map(self.groups[group].page_of.get, keys, repeat(_NONE)))
        return pages[: pages.index(_NONE)] if _NONE in pages else pages

    def publish(self, group: int, page: int, key: PageKey) -> bool:
        """A used page is full and computed, and will not be written to again. False: the group has
        another page with that key already, in use, and this one stays without."""
        pages = self.groups[group]
        other = pages.page_of.get(key)
        if other is not None:
            if pages.users[other]:
                return False
            pages.wake(other)
            pages.key_of[other] = None
            pages.free.append(other)
        else:
            self.news.tell(key, 1)
        pages.page_of[key] = page
        pages.key_of[page] = key
        return True

    def withdraw(self, group: int, page: int) -> None:
        """Nobody shall find this page any more, which is in use."""
        pages = self.groups[group]
        key = pages.key_of[page]
        if key is not None:
            self._forget(pages, page)
            self.slots[group].withdraw(key)

    def restart(self, lost: Collection[int], found: Collection[int]) -> None:
        """What was on its way to the stages is gone, and the groups in `lost`, whose pages nobody
        may be using; of these, the second tiers of those in `found` are there still."""
        for group in lost:
            self._lose(group)
        for group, slots in enumerate(self.slots):
            self.lost += slots.restart(died=group in lost, found=group in found)

    def _lose(self, group: int) -> None:
        pages = self.groups[group]
        for page in (*pages.idle, *pages.kept):
            self._forget(pages, page)
            pages.free.append(page)
        pages.idle.clear()
        pages.kept.clear()

    def settle(self, batch: Batch) -> None:
        """A batch has come back: what it was to save is saved."""
        for slots, message in zip(self.slots, batch.groups, strict=True):
            if message is not None and message.moves:
                slots.settle(message.moves)

    def want(self, keys: Collection[PageKey]) -> None:
        """A waiting request has found these, the first of its tokens: they are the last to go."""
        for key in reversed(tuple(keys)):  # the deepest is the first of them to go
            self._wanted[key] = self._wanted.get(key, 0) + 1
            for pages in self.groups:
                page = pages.page_of.get(key)
                if page is not None and not pages.users[page]:
                    pages.wake(page)
                    pages.kept[page] = None

    def unwant(self, keys: Collection[PageKey]) -> None:
        """The request waits no longer, or for others."""
        for key in reversed(tuple(keys)):
            self._wanted[key] -= 1
            if self._wanted[key]:
                continue
            del self._wanted[key]
            for pages in self.groups:
                page = pages.page_of.get(key)
                if page is not None and page in pages.kept:
                    del pages.kept[page]
                    pages.idle[page] = None

    def _forget(self, pages: GroupPages, page: int) -> PageKey:
        key = pages.key_of[page]
        assert key is not None
        pages.key_of[page] = None
        del pages.page_of[key]
        self.news.tell(key, -1)
        if key in self._wanted:
            self.lost.append(key)
        return key
