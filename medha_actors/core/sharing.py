"""Space sharing (paper, 4.2): what a long prefill may take of a batch beside others."""

from __future__ import annotations

from medha_actors.config import SchedulerConfig
from medha_actors.core.picks import Picks
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.request import RequestState

LONG_BUDGETS = 4.0  # a prefill is long when it takes more than so many budgets alone
# a batch that brings somebody's first token gets at most so much longer for a long prefill's sake
COURTESY = 1.25


def share_of(config: SchedulerConfig, state: RequestState, now: float) -> float:
    """The share of the budget that a long prefill keeps: it leaves the more, the more slack it
    has."""
    if not config.space_sharing or config.fixed_chunk_tokens is not None:
        return 1.0
    slack = max(state.relative_slack(now), 0.0)
    return 1.0 - min(slack, config.max_yield)


def long_limit_s(
    config: SchedulerConfig, model: ExecutionModel, picks: Picks, limit_s: float
) -> float:
    """What a long prefill may fill a batch with these picks up to, of `limit_s`.

    Whoever comes meanwhile waits for the batch's end, in every stage; and whoever's prefill
    ends in it, for their first token. Beside those it rides along where that is nearly free,
    and no further.
    """
    limit_s *= config.long_share
    if any(
        pick.stop == pick.state.goal and not pick.state.output
        for pick in picks.prefills
    ):
        courtesy_s = COURTESY * model.prefill.scale * picks.loads.base_s()
        limit_s = min(limit_s, courtesy_s)
    return limit_s
