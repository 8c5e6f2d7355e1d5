"""What the experiments share: the deployments of the paper, the workload, rows of the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import msgspec

from loadgen.records import PlannedRequest
from loadgen.twin.deployment import Deployment
from loadgen.twin.elastic.cost import ElasticDeployment
from loadgen.twin.elastic.engine import play_elastic
from loadgen.twin.hardware import hardware_of
from loadgen.twin.models import model_of
from loadgen.twin.replay import Played, expect, idle_points, play
from loadgen.workload.arrivals import arrival_times
from loadgen.workload.mixes import PRESETS, synthetic, with_arrivals
from medha_actors.config import SchedulerConfig

CONTEXT = 1_048_576 + 8192
RATE = 0.75  # requests per second in figures 1 and 13
# many requests may wait, and decode at once
ROOMY = SchedulerConfig(
    policy="lars", max_waiting_requests=10**6, max_running_requests=256
)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table. `theirs` is a number or a range; `why` explains a difference of more
    than 20%."""

    key: str
    what: str
    theirs: tuple[float, float]
    ours: float
    unit: str = "x"
    at_least: bool = False  # theirs is a bound: more is as good; with `at_most`, less
    at_most: bool = False
    why: str = ""

    @property
    def ratio(self) -> float:
        """Ours over theirs; within their range it is 1."""
        low, high = self.theirs
        nearest = min(max(self.ours, low), high)
        return self.ours / nearest

    @property
    def agrees(self) -> bool:
        return (
            0.8 <= self.ratio <= 1.2
            or (self.at_least and self.ratio > 1)
            or (self.at_most and self.ratio < 1)
        )


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Of one experiment: rows, and numbers to draw (by figure)."""

    rows: list[Row] = []
    figures: dict[str, Any] = {}


def paper_deployment(
    gpu: str = "a100",
    *,
    model: str = "llama-3-8b",
    tp: int = 8,
    spp: int = 2,
    kvp: int = 1,
    **more: Any,
) -> Deployment:
    """16 A100 with Llama-3 8B unless said otherwise; many requests may decode at once."""
    given: dict[str, Any] = {
        "max_model_len": CONTEXT,
        "scheduler": ROOMY,
    }
    return Deployment(
        model=model_of(model),
        device=hardware_of(gpu),
        tp=tp,
        spp=spp,
        kvp=kvp,
        **(given | more),
    )


@cache
def paper_mix(
    count: int, rate: float, long_fraction: float, seed: int = 0
) -> tuple[PlannedRequest, ...]:
    """The paper's lengths, Poisson arrivals."""
    mix = msgspec.structs.replace(PRESETS["paper"], long_fraction=long_fraction)
    return tuple(with_arrivals(synthetic(mix, count, seed), arrival_times(rate, seed)))


_PLAYED: dict[Any, Played] = {}
_POINTS: dict[Any, Any] = {}


def played(
    deployment: Deployment | ElasticDeployment,
    requests: Sequence[PlannedRequest],
    **more: Any,
) -> Played:
    """Run it once, with normalised TTFT; several figures show the same run. What elastic instances
    do is measured by the idle TTFT of our own 16 A100: clients ask the same of both."""
    key = (msgspec.json.encode(deployment), id(requests), tuple(sorted(more.items())))
    if key not in _PLAYED:
        if isinstance(deployment, ElasticDeployment):
            run = play_elastic(deployment, requests)
            idle = paper_deployment()
        else:
            run = play(deployment, requests, **more)
            idle = msgspec.structs.replace(deployment, scheduler=ROOMY)
        idle_key = (msgspec.json.encode(idle), id(requests))
        if idle_key not in _POINTS:
            _POINTS[idle_key] = idle_points(idle, requests)
        expect(run.records, _POINTS[idle_key])
        _PLAYED[key] = run
    return _PLAYED[key]


def capacity(
    holds: Callable[[float], bool], low: float, high: float, tolerance: float = 0.1
) -> float:
    """The highest rate at which `holds`, by bisection on a logarithmic scale; `low` if it never
    does."""
    while high > low * (1 + tolerance):
        middle = (low * high) ** 0.5
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
