"""Batches that have the grid to themselves: every stage may compute them with all processors.

Other stages would idle meanwhile, since nothing else is to be done. What arrives while such a batch
is on its way waits until it is back.
"""

from __future__ import annotations

from medha_actors.core.chunking import PrefillTable
from medha_actors.core.picks import Picks


def goes_alone(picks: Picks, live: int, table: PrefillTable) -> bool:
    """Whether a batch had better, now that nothing is in flight: all that there is to do is in it,
    or it is the next chunk of a lone prompt that is through sooner so. `live`: how many requests
    there are."""
    picked = picks.decodes + picks.prefills
    if not table.lends or len(picked) < live:
        return False
    state, stop, _ = picked[0]
    if len(picked) == 1 and stop < state.known:
        return table.lone_cut(state.goal).alone
    return all(stop == state.known for state, stop, _ in picked)
