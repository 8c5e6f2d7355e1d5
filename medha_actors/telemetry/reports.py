"""What ingress replicas may ask the engine, for metrics, timelines and the live page."""

from __future__ import annotations

from typing import Protocol

import msgspec

from medha_actors.core.record import Waiting
from medha_actors.core.stats import Stats
from medha_actors.telemetry.histogram import Family
from medha_actors.telemetry.timelines import Timeline


class StepReport(msgspec.Struct, array_like=True):
    """One batch in one group, as the stages worked on it."""

    seq: int
    batch_id: int
    group: int
    starts: tuple[float, ...]  # of each stage, epoch seconds
    seconds: tuple[float, ...]
    exchange: tuple[float, ...]
    prefills: tuple[tuple[str, int, int], ...]  # request, first position, tokens
    decodes: int
    predicted_s: float
    budget_s: float


class GridRow(msgspec.Struct, frozen=True, kw_only=True):
    """One of several grids, in a few figures: requests in it, seconds of prefill that wait."""

    name: str
    running: int
    prefilling: int
    waiting: int
    backlog_s: float
    kv_usage: float
    generation_tokens_total: int
    ttft_s: dict[str, float]


class Snapshot(msgspec.Struct, kw_only=True):
    """What the live page draws: the state now, and the steps since the last one. Of several grids
    it is one, `grid`; `grids` has a row for each."""

    now: float
    seq: int
    stages: int
    groups: int
    stats: Stats
    pages_per_group: int
    steps: list[StepReport]
    queue: list[Waiting]
    # request, tokens so far, seconds since its last token
    decoding: list[tuple[str, int, float]]
    ttft_s: dict[str, float]
    tbt_s: dict[str, float]
    grid: str = ""
    grids: list[GridRow] = []


class Asked(msgspec.Struct, frozen=True):
    """Finished timelines wanted by a replica: those of `always`, and those of `if_missed` that
    missed an objective."""

    always: list[str]
    if_missed: list[str]


class Reports(Protocol):
    """An engine that tells of itself. Any method may raise UnavailableError while the engine is
    rebuilt; with telemetry off the answers are those of an empty system."""

    async def metrics(self) -> list[Family]:
        """The engine's families, then what the replicas have reported."""
        ...

    async def report(self, replica: str, families: list[Family]) -> None:
        """A replica's own figures, whole."""
        ...

    async def find_timelines(self, name: str) -> list[Timeline]:
        """Those of one trace, HTTP request or sequence."""
        ...

    async def take_timelines(self, asked: Asked) -> list[Timeline]:
        """For spans."""
        ...

    async def last_timelines(
        self, count: int
    ) -> tuple[list[Timeline], list[StepReport]]:
        """The last finished requests, the live ones, and what the stages did of late."""
        ...

    async def snapshot(self, after: int, grid: str = "") -> Snapshot:
        """The state now, with the steps after sequence number `after`. `grid`: which of several;
        another one, whole, where that is not there."""
        ...
