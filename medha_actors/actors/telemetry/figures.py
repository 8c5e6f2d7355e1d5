"""Figures: what the engine counts, under vLLM's names with our prefix, plus what only this
scheduler has."""

from __future__ import annotations

from medha_actors.actors.telemetry import scheduler_figures, tier_figures
from medha_actors.actors.telemetry.batch_figures import BatchFigures
from medha_actors.actors.telemetry.request_figures import RequestFigures
from medha_actors.core.stats import Stats
from medha_actors.telemetry.histogram import Family


class Figures:
    """Counters since the start of the controller, which alone keeps the engine's figures."""

    def __init__(self, stages: int, groups: int, pages_per_group: int) -> None:
        self._pages_per_group = pages_per_group
        self.requests = RequestFigures()
        self.batches = BatchFigures(stages, groups)

    def families(self, stats: Stats, model: str) -> list[Family]:
        """Everything, for `exposition`."""
        return [
            *scheduler_figures.families(stats, self._pages_per_group),
            *tier_figures.families(stats.tier),
            *self.batches.families(),
            *self.requests.families(model),
        ]
