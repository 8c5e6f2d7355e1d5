"""A tiny model of the stages of one KV group: page tables and who wrote what where."""

from collections import Counter
from typing import NamedTuple

from medha_actors.messages import unpack_tokens


class Slot(NamedTuple):
    """The KV of one token."""

    position: int
    token: int
    owner: str
    batch: int


class Replica:
    """What the stages of one KV group hold: page tables, and in each slot who wrote which position
    last. Pages may be in several tables; those that are written to are in one."""

    def __init__(self, page_tokens):
        self.page = page_tokens
        self.tables = {}
        self.slots = {}
        self.moved = {}  # the batch that loaded what is in a slot, where one did
        self.readers = Counter()
        # in each slot of the second tier: who saved it in which batch, what
        self.tier = {}
        # of each request: the positions below this, whose tokens the stages know
        self.seen = {}

    def read(self, request_id, start, tokens, readable):
        """The (position, token) pairs cached in [start, start + tokens); what others have written
        must be `readable`."""
        first, pages = self.tables[request_id]
        assert start == first
        found = []
        for offset in range(tokens):
            slot = self.slots[pages[offset // self.page], offset % self.page]
            assert slot.owner == request_id or readable(slot)
            found.append((slot.position, slot.token))
        return found

    def move(self, message):
        """Pages to the second tier and back. What is loaded was written by its first writer."""
        for move in message.moves:
            keys = [(move.page, offset) for offset in range(self.page)]
            if move.load:
                _, contents = self.tier[move.slot]
                self.slots.update(zip(keys, contents, strict=True))
                for key in keys:
                    self.moved[key] = message.batch_id
            else:
                self.tier[move.slot] = (
                    message.batch_id,
                    [self.slots[key] for key in keys],
                )

    def step(self, message):
        self.move(message)
        for request_id in message.closed:
            del self.tables[request_id]
            del self.seen[request_id]
        opened = [sequence.request_id for sequence in message.opened]
        assert len(opened) == len(set(opened))
        assert not set(opened) & set(self.tables)
        for sequence in message.opened:
            self.seen[sequence.request_id] = len(unpack_tokens(sequence.token_ids))
        runs = [(not span.groups, span.groups) for span in message.spans]
        assert runs == sorted(runs), (
            "spans of several groups come first, and in the same order of runs everywhere"
        )
        for span in message.spans:
            if span.request_id in opened and span.request_id not in self.tables:
                self.tables[span.request_id] = (span.piece_start, [])
            _, pages = self.tables[span.request_id]
            pages.extend(span.new_pages)
            if span.start <= self.seen[span.request_id]:
                self.seen[span.request_id] = span.stop
            assert len(pages) == len(set(pages))
        self.readers = Counter()
        for _, pages in self.tables.values():
            self.readers.update(pages)
        assert set(opened) <= set(self.tables)

    def write(self, span, batch):
        _, pages = self.tables[span.request_id]
        for position, token in zip(
            range(span.start, span.stop), unpack_tokens(span.token_ids), strict=True
        ):
            offset = position - span.piece_start
            assert offset // self.page < len(pages), "no page for a written token"
            page = pages[offset // self.page]
            assert self.readers[page] == 1, (
                "a page that is written to belongs to one request"
            )
            self.slots[page, offset % self.page] = Slot(
                position, token, span.request_id, batch
            )
            self.moved.pop((page, offset % self.page), None)

    def lose(self, batches):
        """What these batches were to write was perhaps not written."""
        self.slots = {
            key: slot
            for key, slot in self.slots.items()
            if slot.batch not in batches and self.moved.get(key) not in batches
        }
        self.tier = {
            slot: kept for slot, kept in self.tier.items() if kept[0] not in batches
        }
