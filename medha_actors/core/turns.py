"""Whose turn it was: which prefills have to wait because others took their places."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from medha_actors.core.request import RequestState


class Turn:
    """The unfinished prefills of the last batch that had any."""

    def __init__(self) -> None:
        self._states: list[RequestState] = []

    def clear(self) -> None:
        """Nobody has a turn any more."""
        self._states = []

    def next(self, picked: list[RequestState]) -> list[tuple[str, str]]:
        """These have been picked for a batch: who of the last turn has to wait, for whom."""
        if not picked:
            return []
        taken = preempted(self._states, picked)
        self._states = [state for state in picked if state.prefilling]
        return taken


def preempted(
    turn: Iterable[RequestState], picked: Collection[RequestState]
) -> list[tuple[str, str]]:
    """Note on each unfinished prefill of the last `turn` that another took its place in a group:
    (who, by whom)."""
    takers: dict[int, RequestState] = {}
    for state in picked:
        for piece in state.pieces:
            takers.setdefault(piece.group, state)
    pairs = []
    for state in turn:
        if state in picked or not state.prefilling:
            continue
        others = [
            takers[piece.group] for piece in state.pieces if piece.group in takers
        ]
        if others:
            state.milestones.preemptions += 1
            pairs.append((state.id, others[0].id))
    return pairs
