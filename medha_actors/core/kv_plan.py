"""Pages of the KV caches, and which KV group owns which range of a request's tokens (paper, 3.3).

Each group has the same number of pages. A request starts on one group and takes the next one only
when its piece there has reached the cutoff (progressive onboarding); when all groups hold a piece,
the last takes the rest. A prefill reserves the pages of all its pieces before it starts, so
prefills never wait for each other's pages half done; decodes take pages as they grow. Pages given
back may be used at once: every stage works through the batches in order.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from medha_actors.core.request import Piece, RequestState

# in one group; below that a second one costs a decode more than it saves (docs/benchmarks.md)
PAYS_FROM_TOKENS = 8192


class Grid(msgspec.Struct, frozen=True, kw_only=True):
    """What the scheduler schedules on: `stages` pipeline stages by `groups` KV groups."""

    stages: int
    groups: int
    pages_per_group: int
    page_tokens: int
    max_tokens_per_kvp_group: int | None  # None: default_cutoff
    max_model_len_tokens: int


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
    """Free and promised pages of every group."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.page_tokens = grid.page_tokens
        room = grid.pages_per_group * grid.page_tokens  # tokens
        self.cutoff = (
            room
            if grid.groups == 1
            else min(grid.max_tokens_per_kvp_group or default_cutoff(grid), room)
        )
        self.capacity_tokens = (
            grid.groups - 1
        ) * self.cutoff + room  # of one request that has all to itself
        self._free = [list(range(grid.pages_per_group - 1, -1, -1)) for _ in range(grid.groups)]
        self._promised = [0] * grid.groups

    def available(self, group: int) -> int:
        """Pages of a group that are neither taken nor promised."""
        return len(self._free[group]) - self._promised[group]

    def usage(self) -> list[float]:
        """Share of each group's pages that is taken or promised, 0 to 1."""
        pages = max(1, self.grid.pages_per_group)
        return [1 - self.available(group) / pages for group in range(self.grid.groups)]

    def place(
        self, tokens: int, preferred: Sequence[int], headroom: Sequence[int]
    ) -> list[Piece] | None:
        """Pieces for a prefill of `tokens`, on the first groups of `preferred` with room; None: it
        has to wait.

        `headroom`: pages to leave in each group for the decodes that grow there. Nothing is
        reserved yet.
        """
        count = min(self.grid.groups, max(1, -(-tokens // self.cutoff)))
        if count > len(preferred):
            return None
        sizes = [self.cutoff] * (count - 1) + [tokens - (count - 1) * self.cutoff]
        pieces: list[Piece | None] = [None] * count
        left = list(preferred)
        for index in sorted(
            range(count), key=lambda i: -sizes[i]
        ):  # the largest has the least choice
            pages = self._pages(sizes[index])
            group = next((g for g in left if self.available(g) - headroom[g] >= pages), None)
            if group is None:
                return None
            left.remove(group)
            pieces[index] = Piece(group, index * self.cutoff, promised=pages)
        return [piece for piece in pieces if piece is not None]

    def reserve(self, state: RequestState, pieces: list[Piece]) -> None:
        """Promise the pages of placed pieces to a request."""
        for piece in pieces:
            self._promised[piece.group] += piece.promised
        state.pieces = pieces

    def take(self, state: RequestState, stop: int) -> None:
        """Turn promises into pages for the positions below `stop` (a prefill is dispatched up to
        there)."""
        for piece in state.pieces:
            if piece.promised and piece.start < stop:
                missing = min(
                    max(0, self._pages(stop - piece.start) - len(piece.pages)), piece.promised
                )
                for _ in range(missing):
                    piece.pages.append(self._free[piece.group].pop())
                piece.promised -= missing
                self._promised[piece.group] -= missing

    def grow(self, state: RequestState) -> int | None:
        """Make room for the next decode's token. Returns the group that has no page left, or None
        when all is well."""
        position, last = state.known - 1, state.pieces[-1]
        if position - last.start >= self.cutoff and len(state.pieces) < self.grid.groups:
            held = {piece.group for piece in state.pieces}
            group = max((g for g in range(self.grid.groups) if g not in held), key=self.available)
            if self.available(group) > 0:
                state.pieces.append(Piece(group, position, pages=[self._free[group].pop()]))
                return None
        if position - last.start < len(last.pages) * self.page_tokens:
            return None
        if self.available(last.group) < 1:
            return last.group
        last.pages.append(self._free[last.group].pop())
        return None

    def release(self, state: RequestState) -> None:
        """Give back everything a request holds."""
        for piece in state.pieces:
            self._free[piece.group] += reversed(piece.pages)
            self._promised[piece.group] -= piece.promised
        state.pieces = []

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
    return [(piece, end - piece.start) for piece, end in zip(touched, ends, strict=True)]


def piece_end(pieces: Sequence[Piece], start: int, goal: int) -> int:
    """Where the piece that holds position `start` ends: a span must not go beyond."""
    return min((piece.start for piece in pieces if piece.start > start), default=goal)
