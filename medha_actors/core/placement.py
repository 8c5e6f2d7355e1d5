"""Where a request starts: behind a hit or afresh, in which groups, and whether somebody's hit is
worth waiting for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from medha_actors.core.chunking import PrefillTable
from medha_actors.core.hits import Hits
from medha_actors.core.kv_plan import KvPlan
from medha_actors.core.request import Piece, RequestState
from medha_actors.core.search import NO_HIT, Hit


class Start(NamedTuple):
    """Pieces for a request that starts at position `hit`, behind what is cached."""

    pieces: list[Piece]
    hit: int


class Placement:
    """Weighs hits against the load of the groups that have them, by predicted seconds."""

    def __init__(self, kv: KvPlan, hits: Hits, table: PrefillTable) -> None:
        self.kv = kv
        self.hits = hits
        self.table = table
        self._groups = kv.grid.groups

    def choose(
        self,
        state: RequestState,
        preferred: Sequence[int],
        headroom: Sequence[int],
        ahead_s: Sequence[float],
    ) -> Start | None:
        """The start from which a prefill is soonest through, if there is room for any: the work
        ahead of it in the groups it touches first (`ahead_s`), and its own."""
        hits: list[Hit] = []
        if state.keys is not None:
            hits = self.kv.search.hits(state.keys, state.hit_limit)
        best: Start | None = None
        best_s = 0.0
        for hit in (*hits, NO_HIT):
            pieces = self.kv.place(state.goal, preferred, headroom, hit)
            if pieces is None:
                continue
            touched = [piece.group for piece in pieces if piece.start <= hit.tokens]
            wait_s = max([ahead_s[group] for group in touched])
            stored = self.table.worth(hit.tokens, hit.stored, state.goal)
            seconds = wait_s + self.table.seconds(hit.tokens, state.goal, stored)
            if best is None or seconds < best_s:
                best = Start(pieces, hit.tokens)
                best_s = seconds
            if self._groups == 1:
                break
        return best

    def stored(self, state: RequestState) -> int:
        """Up to where a placed prefill had better load what comes next from the second tier."""
        return self.table.worth(state.dispatched, self.kv.stored(state), state.goal)

    def spoils(self, state: RequestState, now: float) -> bool:
        """Whether a placed request would evict what waiting requests have found, although it is
        quicker to serve those first than to compute it again, and there is time for that."""
        spoiled = sum([self.kv.spoiled(piece) for piece in state.pieces])
        if not spoiled:
            return False
        lost = self.kv.page_tokens * spoiled
        again_s = 0.0
        first_s = 0.0
        for other in self.hits.finders():
            if lost <= 0:
                break
            if other is not state:
                tokens = min(lost, other.hit)
                lost -= tokens
                again_s += self._again_s(other.hit - tokens, other.hit)
                first_s += other.remaining_s
        return first_s < again_s and state.slack(now) > first_s

    def _again_s(self, start: int, stop: int) -> float:
        """Seconds to have the pages of these positions again, after they had to make room."""
        stored = self.table.worth(start, stop, stop) if self.kv.store.tiered else 0
        return self.table.seconds(start, stop, stored)
