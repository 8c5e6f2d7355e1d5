"""The second tier of one KV group: slots in host memory or in a file, each as large as a page.

A page that has to make room is saved to a slot, which is known by the page's key from then on; the
slot that was unused longest gives way. Whatever is decided here is carried out by the stages in the
order of `pending`, before the step it is sent with. So a slot may be loaded as soon as its save has
been decided, and saved to again as soon as its load has.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from itertools import repeat

from medha_actors.core.page_keys import PageKey
from medha_actors.core.page_news import News
from medha_actors.messages import Move

_NONE = -1  # instead of a slot's number


class GroupSlots:
    """See the module."""

    __slots__ = (
        "free",
        "key_of",
        "loaded",
        "news",
        "pending",
        "saved",
        "slot_of",
        "unsettled",
    )

    def __init__(self, slots: int, news: News) -> None:
        """`news`: what comes and goes is told there."""
        self.news = news
        self.free = list(range(slots - 1, -1, -1))
        self.slot_of: dict[PageKey, int] = {}
        self.key_of: OrderedDict[int, PageKey] = OrderedDict()  # longest unused first
        # what has not come back: (slot, load), how often
        self.unsettled: Counter[tuple[int, bool]] = Counter()
        self.saved = self.loaded = 0  # pages, since the start
        self.pending: list[Move] = []  # decided and not sent

    @property
    def usage(self) -> float:
        """Share of the slots that hold a page, 0 to 1."""
        return len(self.key_of) / max(1, len(self.key_of) + len(self.free))

    @property
    def loading(self) -> bool:
        """There is a load among them, so the next message cannot wait for a span."""
        return any(move.load for move in self.pending)

    def keep(self, page: int, key: PageKey) -> PageKey | None:
        """A page is about to be written to: its contents go to a slot, if they are in none.
        Returns the key that had to give way."""
        if self.touch(key):
            return None
        gone = None
        if self.free:
            slot = self.free.pop()
        else:
            slot, gone = self.key_of.popitem(last=False)
            del self.slot_of[gone]
            self.news.tell(gone, -1)
        self.slot_of[key] = slot
        self.key_of[slot] = key
        self.news.tell(key, 1)
        self.saved += 1
        self._decide(page, slot, load=False)
        return gone

    def touch(self, key: PageKey) -> bool:
        """It is the last to give way now; False: it is in no slot."""
        slot = self.slot_of.get(key)
        if slot is None:
            return False
        self.key_of.move_to_end(slot)
        return True

    def reach(self, keys: Sequence[PageKey]) -> list[int]:
        """The slots with these keys, from the first on as far as there are any."""
        slots = list(map(self.slot_of.get, keys, repeat(_NONE)))
        return slots[: slots.index(_NONE)] if _NONE in slots else slots

    def load(self, page: int, key: PageKey) -> bool:
        """A page gets its contents from the slot with this key; False: there is none."""
        if not self.touch(key):
            return False
        self.loaded += 1
        self._decide(page, self.slot_of[key], load=True)
        return True

    def withdraw(self, key: PageKey) -> None:
        """Nobody shall find this any more."""
        slot = self.slot_of.pop(key, None)
        if slot is not None:
            del self.key_of[slot]
            self.free.append(slot)
            self.news.tell(key, -1)

    def send(self) -> tuple[Move, ...]:
        """What has been decided since the last message: it goes with this one."""
        moves = tuple(self.pending)
        self.pending.clear()
        return moves

    def settle(self, moves: Iterable[Move]) -> None:
        """A message with these moves has passed all stages."""
        for move in moves:
            kind = move.slot, move.load
            self.unsettled[kind] -= 1
            if not self.unsettled[kind]:
                del self.unsettled[kind]

    def restart(self, died: bool, found: bool) -> list[PageKey]:
        """What was on its way has perhaps not been carried out. `died`: the group has, and its
        slots are gone unless they were `found` again; of these, what was being loaded may be what
        it died of. Returns the keys of what can no longer be had."""
        if died and not found:
            gone = list(self.slot_of)
        else:
            doubtful = {slot for slot, load in self.unsettled if died or not load}
            gone = [self.key_of[slot] for slot in doubtful if slot in self.key_of]
        for key in gone:
            self.withdraw(key)
        self.unsettled.clear()
        self.pending.clear()
        return gone

    def _decide(self, page: int, slot: int, load: bool) -> None:
        self.unsettled[slot, load] += 1
        self.pending.append(Move(page, slot, load))
