"""The requests past their prefill: how many in each group, and how quick their tokens are to be."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from medha_actors.core.kv_plan import Grid
from medha_actors.core.request import RequestState

# running decodes per stage from which on they are split into micro-batches
DECODE_SPLIT = 2


def decode_rows(running: int, stages: int) -> int:
    """Decodes one batch may carry: with enough of them, a share that leaves work for the other
    stages."""
    return -(-running // stages) if running >= DECODE_SPLIT * stages else running


class Decoding:
    """`by_group`: how many of them hold a piece in each group."""

    def __init__(self, grid: Grid) -> None:
        self.by_group = [0] * grid.groups
        self._states: dict[str, RequestState] = {}
        self._tpots: dict[float, int] = {}  # how many of them have this objective

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[str]:
        """Their ids."""
        return iter(self._states)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._states

    def values(self) -> Collection[RequestState]:
        """They themselves, in the order in which their prefills ended."""
        return self._states.values()

    def tightest_tpot(self) -> float:
        """The smallest time between tokens that one of them wants; infinite if there is none."""
        return min(self._tpots, default=math.inf)

    def start(self, state: RequestState) -> None:
        """Its prefill is wholly dispatched."""
        self._states[state.id] = state
        self._tpots[state.tpot_s] = self._tpots.get(state.tpot_s, 0) + 1
        for piece in state.pieces:
            self.by_group[piece.group] += 1

    def grown(self, state: RequestState) -> None:
        """It holds one more piece."""
        self.by_group[state.pieces[-1].group] += 1

    def stop(self, state: RequestState) -> bool:
        """While it still holds its pieces; False: it was not decoding."""
        if self._states.pop(state.id, None) is None:
            return False
        self._tpots[state.tpot_s] -= 1
        if not self._tpots[state.tpot_s]:
            del self._tpots[state.tpot_s]
        for piece in state.pieces:
            self.by_group[piece.group] -= 1
        return True
