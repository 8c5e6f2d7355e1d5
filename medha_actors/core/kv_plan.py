"""Pages of the KV caches, and which KV group owns which range of a request's tokens (paper, 3.3).

Each group has the same number of pages. A request starts on one group and takes the next one only
when its piece there has reached the cutoff (progressive onboarding); when all groups hold a piece,
the last takes the rest. A prefill reserves the pages of all its pieces before it starts, so
prefills never wait for each other's pages half done; decodes take pages as they grow. Pages given
back may be used at once: every stage works through the batches in order.

Full pages that have been computed are found again by what is in them (PageStore): a request that
begins with the same tokens starts behind them, in the groups that have them. It computes at least
its last known token itself. Further pages may be in the group's second tier (GroupSlots): a prefill
that has come to them can load them instead of computing them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from medha_actors.core.page_keys import PageKey
from medha_actors.core.page_store import PageStore
from medha_actors.core.request import Piece, RequestState
from medha_actors.core.search import NO_HIT, Hit, Search
from medha_actors.messages import MOST_FORCED

# in one group; below that a second one costs a decode more than it saves (docs/benchmarks.md)
PAYS_FROM_TOKENS = 8192
LOADED = 512  # pages in one batch, at most: a decision has no time to look up more


class Grid(msgspec.Struct, frozen=True, kw_only=True):
    """What the scheduler schedules on: `stages` pipeline stages by `groups` KV groups."""

    stages: int
    groups: int
    pages_per_group: int
    page_tokens: int
    max_tokens_per_kvp_group: int | None  # None: default_cutoff
    max_model_len_tokens: int
    slots_per_group: int = 0  # pages in the second tier


def default_cutoff(grid: Grid) -> int:
    """Equal pieces of the longest sequence in whole pages, but not below what pays; KvPlan bounds
    it by the pages.

    A decode waits for its largest piece, and the last takes what the others leave: with less, the
    longest sequence would be slower; with more, so would those that then stay on fewer groups. It
    refuses nothing: if the groups can hold the longest sequence at all, so can these pieces.
    """
    tokens = max(PAYS_FROM_TOKENS, -(-grid.max_model_len_tokens // grid.groups))
    return -(-tokens // grid.page_tokens) * grid.page_tokens


class KvPlan:
    """Used and promised pages of every group, and what can be found in them."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.page_tokens = grid.page_tokens
        room = grid.pages_per_group * grid.page_tokens  # tokens
        self.cutoff = (
            room
            if grid.groups == 1
            else min(grid.max_tokens_per_kvp_group or default_cutoff(grid), room)
        )
        # of one request that has all to itself
        self.capacity_tokens = (grid.groups - 1) * self.cutoff + room
        self.store = PageStore(grid.groups, grid.pages_per_group, grid.slots_per_group)
        self.search = Search(self.store, self.page_tokens, self.cutoff)
        self._promised = [0] * grid.groups

    def available(self, group: int) -> int:
        """Pages of a group that are neither used nor promised; some may have to be forgotten."""
        return self.store.available(group) - self._promised[group]

    def pushes(self, group: int, tokens: int) -> bool:
        """Whether a batch of so many tokens may push pages out, to a second tier."""
        return self.store.tiered and self.store.free(group) * self.page_tokens < tokens

    def usage(self) -> list[float]:
        """Share of each group's pages that is used or promised, 0 to 1."""
        pages = max(1, self.grid.pages_per_group)
        return [1 - self.available(group) / pages for group in range(self.grid.groups)]

    def cached(self) -> float:
        """Share of all pages that can be found by what is in them, 0 to 1."""
        pages = max(1, self.grid.groups * self.grid.pages_per_group)
        cached = [self.store.cached(group) for group in range(self.grid.groups)]
        return sum(cached) / pages

    def place(
        self,
        tokens: int,
        preferred: Sequence[int],
        headroom: Sequence[int],
        hit: Hit = NO_HIT,
    ) -> list[Piece] | None:
        """Pieces for a prefill of `tokens`: those of the hit, the last of which grows up to the
        cutoff, then on the first groups of `preferred` with room; None: it has to wait.

        `preferred`: every group; `headroom`: pages to leave in each for the decodes that grow
        there. Nothing is reserved yet.
        """
        pieces, start = self._shared(tokens, hit)
        for piece in pieces:
            needed = self.store.unused(piece.group, piece.pages) + piece.promised
            if self.available(piece.group) - headroom[piece.group] < needed:
                return None
        if start >= tokens:
            return pieces
        held = {piece.group for piece in pieces}
        left = [group for group in preferred if group not in held]
        rest = tokens - start
        count = min(self.grid.groups - len(held), -(-rest // self.cutoff))
        if count > len(left):
            return None
        sizes = [self.cutoff] * (count - 1)
        sizes.append(rest - sum(sizes))
        fresh: dict[int, Piece] = {}
        # the largest has the least choice
        for index in sorted(range(count), key=lambda i: -sizes[i]):
            pages = self._pages(sizes[index])
            roomy = [
                group
                for group in left
                if self.available(group) - headroom[group] >= pages
            ]
            if not roomy:
                return None
            group = roomy[0]
            left.remove(group)
            fresh[index] = Piece(group, start + index * self.cutoff, promised=pages)
        return pieces + [fresh[index] for index in range(count)]

    def spoiled(self, piece: Piece) -> int:
        """How many pages that waiting requests have found a placed piece would evict."""
        idle = self.store.unused(piece.group, piece.pages)
        kept = max(0, self.store.kept(piece.group) - idle)
        return max(0, piece.promised + idle + kept - self.available(piece.group))

    def reserve(self, state: RequestState, pieces: list[Piece]) -> None:
        """Promise the pages of placed pieces to a request, and let it share those of its hit."""
        for piece in pieces:
            self.store.share(piece.group, piece.pages)
            self._promised[piece.group] += piece.promised
        state.pieces = pieces
        state.published = state.computed // self.page_tokens

    def take(self, state: RequestState, stop: int) -> None:
        """Turn promises into pages for the positions below `stop` (a prefill is dispatched up to
        there)."""
        for piece in state.pieces:
            if piece.promised and piece.start < stop:
                needed = self._pages(stop - piece.start) - len(piece.pages)
                missing = min(max(0, needed), piece.promised)
                for _ in range(missing):
                    piece.pages.append(self.store.take(piece.group))
                piece.promised -= missing
                self._promised[piece.group] -= missing

    def stored(self, state: RequestState) -> int:
        """Up to where a placed prefill could load what it would compute next."""
        start = state.dispatched
        if not self.store.tiered or state.keys is None or start % self.page_tokens:
            return start
        piece = holders(state, start)[-1][0]
        if piece.start % self.page_tokens:
            return start
        limit = min(
            piece_end(state.pieces, start, state.goal), state.hit_limit, state.edge
        )
        first = start // self.page_tokens
        last = min(limit // self.page_tokens, first + LOADED)
        return (
            first + self.search.stored(state.keys, first, last, piece.group)
        ) * self.page_tokens

    def load(self, state: RequestState, stop: int) -> int:
        """Fill the next pages of a placed prefill from the second tier; returns the position up to
        which they are loaded. That is before `stop` where taking pages has cost the tier those that
        were to be loaded."""
        assert state.keys is not None
        piece = holders(state, state.dispatched)[-1][0]
        slots = self.store.slots[piece.group]
        first = state.dispatched // self.page_tokens
        keys = [state.keys[index] for index in range(first, stop // self.page_tokens)]
        for key in reversed(keys):
            slots.touch(key)
        for index, key in enumerate(keys, first):
            self.take(state, (index + 1) * self.page_tokens)
            page = piece.pages[index - piece.start // self.page_tokens]
            if not slots.load(page, key):
                return index * self.page_tokens
        return stop

    def grow(self, state: RequestState) -> int | None:
        """Make room for the next decode's tokens. Returns the group that has no page left, or None
        when all is well."""
        start = state.dispatched
        last = state.pieces[-1]
        if start - last.start >= self.cutoff and len(state.pieces) < self.grid.groups:
            held = {piece.group for piece in state.pieces}
            others = [group for group in range(self.grid.groups) if group not in held]
            group = max(others, key=self.available)
            pages = self._pages(state.known - start)
            if self.available(group) >= pages:
                taken = [self.store.take(group) for _ in range(pages)]
                state.pieces.append(Piece(group, start, pages=taken))
                return None
        while len(last.pages) < self._pages(state.known - last.start):
            if self.available(last.group) < 1:
                return last.group
            last.pages.append(self.store.take(last.group))
        return None

    def room_beside(self, state: RequestState) -> int:
        """How many forced tokens may be computed together with the last known one: a span lies in
        one piece, and the next one may begin at the cutoff."""
        if len(state.pieces) == self.grid.groups:
            return MOST_FORCED
        filled = state.known - state.pieces[-1].start
        room = self.cutoff - filled
        return min(MOST_FORCED, room if room >= 0 else self.cutoff - 1)

    def release(self, state: RequestState) -> None:
        """Give back everything a request holds."""
        for piece in state.pieces:
            self.store.give_back(piece.group, reversed(piece.pages))
            self._promised[piece.group] -= piece.promised
        state.pieces = []

    def publish(self, state: RequestState) -> list[PageKey]:
        """Let others find the pages of a request that are full and computed; returns the new keys.

        Only those that begin at a multiple of the page size in the sequence: pages of a piece that
        does not are never shared.
        """
        keys = state.keys
        full = state.computed // self.page_tokens
        new = list[PageKey]()
        if keys is None or full == state.published:
            return new
        for index in range(state.published, full):
            place = self._place_of(state, index)
            if place is not None and self.store.publish(*place, keys[index]):
                new.append(keys[index])
        state.published = full
        return new

    def withdraw(self, state: RequestState) -> None:
        """Let nobody find what this request has computed: something is wrong with it."""
        for index in range(state.hit // self.page_tokens, state.published):
            place = self._place_of(state, index)
            if place is not None:
                self.store.withdraw(*place)

    def frees(self, state: RequestState, group: int) -> bool:
        """Whether pages of a group would be available if this request gave back what it has."""
        for piece in state.pieces:
            if piece.group == group:
                users = (
                    self.store.users(group, page) for page in reversed(piece.pages)
                )
                return 1 in users or piece.promised > 0
        return False

    def _shared(self, tokens: int, hit: Hit) -> tuple[list[Piece], int]:
        """The pieces that a hit makes, and the first position that belongs to none of them."""
        pieces = []
        for stretch in hit.stretches:
            pieces.append(
                Piece(stretch.group, stretch.start, pages=list(stretch.pages))
            )
        if not pieces:
            return pieces, 0
        last = pieces[-1]
        end = tokens
        if len(pieces) < self.grid.groups:
            end = min(tokens, max(last.start + self.cutoff, hit.tokens))
        last.promised = self._pages(end - last.start) - len(last.pages)
        return pieces, end

    def _place_of(self, state: RequestState, index: int) -> tuple[int, int] | None:
        """Group and number of the page with the index-th page_tokens of a sequence; None: they do
        not fill one page."""
        position = index * self.page_tokens
        number = len(state.pieces) - 1
        while state.pieces[number].start > position:
            number -= 1
        piece = state.pieces[number]
        end = position + self.page_tokens
        split = number + 1 < len(state.pieces) and state.pieces[number + 1].start < end
        if split or (position - piece.start) % self.page_tokens:
            return None
        return piece.group, piece.pages[(position - piece.start) // self.page_tokens]

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.page_tokens)


def holders(state: RequestState, start: int) -> list[tuple[Piece, int]]:
    """The pieces that a span from `start` touches, in sequence order, with the tokens each has
    cached before it.

    The last one is where the span's own keys and values go.
    """
    pieces = state.pieces
    if len(pieces) == 1:
        return [(pieces[0], start)]
    touched = [piece for piece in pieces if piece.start <= start]
    ends = [piece.start for piece in touched[1:]] + [start]
    return [
        (piece, end - piece.start) for piece, end in zip(touched, ends, strict=True)
    ]


def piece_end(pieces: Sequence[Piece], start: int, goal: int) -> int:
    """Where the piece that holds position `start` ends: a span must not go beyond."""
    return min([goal, *[piece.start for piece in pieces if piece.start > start]])
