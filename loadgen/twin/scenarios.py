"""What the policy laboratory plays: the convoy mix and windows of recorded traces, on deployments
that they fit, and what their clients ask for.

Every seed is another draw of the mix or another window of the trace. Rates are 1/s here; capacity
is the rate at which the deployment works through all the requests when they are there at once,
first come first served in chunks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from loadgen.records import PlannedRequest
from loadgen.twin.deployment import Deployment
from loadgen.twin.hardware import hardware_of
from loadgen.twin.models import model_of
from loadgen.twin.options import scheduler_of
from loadgen.twin.replay import longest_of, play
from loadgen.workload.arrivals import arrival_times
from loadgen.workload.mixes import PRESETS, synthetic, with_arrivals
from loadgen.workload.traces import TraceOptions, read_trace, trace_path
from medha_actors.messages import Objectives

SCENARIOS = ("convoy", "mooncake", "azure")
# prompts above are "long", in tokens
LONG_TOKENS = {"mooncake": 16_384, "azure": 2048}
TRACES = {
    "mooncake": "mooncake_conversation_trace.jsonl.gz",
    "azure": "AzureLLMInferenceTrace_conv.csv.gz",
}
# What clients ask for, as a multiple of the default deadline (None: nothing); `mixed`: a third each
Asking = Literal["default", "tight", "lax", "mixed"]
TIGHT = 0.8
LAX = 3.0
ASKED: dict[Asking, tuple[float | None, ...]] = {
    "default": (None,),
    "tight": (TIGHT,),
    "lax": (LAX,),
    "mixed": (TIGHT, None, LAX),
}


class Scenario(NamedTuple):
    """A deployment and requests whose arrivals have a mean rate of 1/s."""

    deployment: Deployment
    requests: list[PlannedRequest]


def scenario_of(
    name: str, count: int, seed: int, traces: str | None = None
) -> Scenario:
    """One of SCENARIOS. `traces`: a directory with the whole traces; without it the windows are of
    the samples in the package, which are hardly longer than one."""
    if name == "convoy":
        mix = PRESETS["convoy"]
        requests = with_arrivals(synthetic(mix, count, seed), arrival_times(1.0, seed))
        grid: dict[str, Any] = {
            "model": model_of("smollm2-135m"),
            "device": hardware_of("cpu-2core"),
            "tpot_s": 0.15,
        }
    else:
        path = (
            trace_path(f"sample:{name}")
            if traces is None
            else Path(traces) / TRACES[name]
        )
        requests = window(_trace(path, LONG_TOKENS[name]), count, seed)
        grid = {
            "model": model_of("llama-3-8b"),
            "device": hardware_of("a100"),
            "tpot_s": 0.1,
        }
    deployment = Deployment(
        spp=2, max_model_len=max(8192, longest_of(requests) + 1), seed=seed, **grid
    )
    return Scenario(deployment, requests)


@lru_cache(maxsize=4)
def _trace(path: Path, long_tokens: int) -> list[PlannedRequest]:
    return read_trace(path, TraceOptions(long_threshold=long_tokens))


def window(
    trace: Sequence[PlannedRequest], count: int, seed: int
) -> list[PlannedRequest]:
    """`count` requests of a trace, for each seed the next ones; over its end it goes on from its
    beginning. Their blocks are forgotten: every prompt is its own."""
    whole_s = (trace[-1].at or 0.0) * len(trace) / max(1, len(trace) - 1)
    first = seed * count
    taken = [
        (trace[place % len(trace)], place // len(trace))
        for place in range(first, first + count)
    ]
    instants = [(request.at or 0.0) + rounds * whole_s for request, rounds in taken]
    gap_s = (instants[-1] - instants[0]) / count
    return [
        msgspec.structs.replace(
            request,
            index=index,
            at=(instant - instants[0]) / gap_s,
            blocks=(),
            block_tokens=0,
        )
        for index, ((request, _), instant) in enumerate(
            zip(taken, instants, strict=True)
        )
    ]


def capacity_of(scenario: Scenario) -> float:
    """Requests per second when there is always something to do."""
    at_once = [
        msgspec.structs.replace(request, at=0.0) for request in scenario.requests
    ]
    busy = msgspec.structs.replace(
        scenario.deployment, noise=0.03, scheduler=scheduler_of("fcfs_chunked", {})
    )
    return len(at_once) / play(busy, at_once).duration_s


def deadlines_of(scenario: Scenario, asking: Asking) -> dict[int, tuple[str, float]]:
    """Of each request by index: how tight its objective is, and its seconds to the first token."""
    config = scenario.deployment.config().objectives
    table = scenario.deployment.simulation().scheduler.table
    factors = ASKED[asking]
    names = {None: "default", TIGHT: "tight", LAX: "lax"}
    found = {}
    for number, request in enumerate(scenario.requests):
        # a stride that falls on all classes alike; long ones are counted for themselves
        factor = factors[number % len(factors)]
        work_s = table.seconds(0, request.prompt_tokens)
        default_s = max(config.ttft_multiplier * work_s, config.ttft_floor_s)
        asked_s = default_s * (1.0 if factor is None else factor)
        found[request.index] = names[factor], max(asked_s, config.min_ttft_s)
    return found


def objectives_of(deadlines: Mapping[int, tuple[str, float]]) -> dict[int, Objectives]:
    """What the clients send: those with the default ask for nothing."""
    return {
        index: Objectives(ttft_s=seconds)
        for index, (name, seconds) in deadlines.items()
        if name != "default"
    }
