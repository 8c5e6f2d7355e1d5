"""Batches that have the grid to themselves: every stage may compute them with all processors.

Other stages would idle meanwhile, since nothing else is to be done. What arrives while such a batch
is on its way waits until it is back.
"""

from __future__ import annotations

from medha_actors.core.chunking import PrefillTable
from medha_actors.core.decoding import decode_rows
from medha_actors.core.group_load import GroupLoad
from medha_actors.core.live import LiveRequests
from medha_actors.core.picks import Picks
from medha_actors.core.predictor import ExecutionModel


def decodes_alone(live: LiveRequests, stages: int, model: ExecutionModel) -> bool:
    """Whether decodes are all there is to do, and had better go in one batch than in one for each
    stage."""
    decodes = len(live.decoding)
    if not model.lends or decodes < len(live.by_id):
        return False
    rows = decode_rows(decodes, stages)
    together = GroupLoad(rows=decodes, spans=decodes, sampled=decodes, alone=True)
    part = GroupLoad(rows=rows, spans=rows, sampled=rows)
    return model.base(together) < model.base(part)


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
    whole = all(stop == state.known for state, stop, _ in picked)
    return whole and picks.loads.quicker_alone()
