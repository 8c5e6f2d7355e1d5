"""`medha-loadgen laboratory`: scheduling policies side by side, on the convoy mix and on recorded
traces.

Capacity of a scenario is the rate at which the deployment works through all its requests when they
are there at once, first come first served in chunks. Every policy then sees the same arrivals at
shares of that rate.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec

from loadgen.errors import LoadgenError
from loadgen.flags import flag
from loadgen.judge.latencies import gaps, percentile, ttfts
from loadgen.records import LONG, SHORT, PlannedRequest, RequestRecord
from loadgen.show.output import Say, claim_directory
from loadgen.show.tables import Table, as_text
from loadgen.twin.deployment import Deployment
from loadgen.twin.hardware import hardware_of
from loadgen.twin.models import model_of
from loadgen.twin.options import scheduler_of
from loadgen.twin.replay import expect, idle_points, longest_of, play
from loadgen.workload.arrivals import arrival_times
from loadgen.workload.mixes import PRESETS, synthetic, with_arrivals
from loadgen.workload.traces import TraceOptions, read_trace, trace_path

# name: policy, and what else of the scheduler section
POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "fcfs": ("fcfs", {}),
    "fcfs_chunked": ("fcfs_chunked", {}),
    "edf": ("edf", {}),
    "lrs": ("lrs", {}),
    "lars": ("lars", {}),
    "hrrn": ("hrrn", {}),
    "spf": ("spf", {}),
    "relegation": ("relegation", {}),
    "lars, long_share 0.25": ("lars", {"long_share": 0.25}),
    "spf, long_share 0.25": ("spf", {"long_share": 0.25}),
}
SCENARIOS = ("convoy", "mooncake", "azure")
FULL = 600  # requests
QUICK = 120
# a good TTFT: 5 times idle, or half a second
_GOOD_TIMES = 5.0
_GOOD_S = 0.5


class LaboratoryOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command is given."""

    quick: Annotated[bool, flag("smaller samples")] = False
    policies: Annotated[tuple[str, ...], flag(shown="all", metavar="NAME")] = tuple(POLICIES)
    loads: Annotated[tuple[float, ...], flag("of the capacity", metavar="SHARE", gt=0, le=10)] = (
        0.5,
        0.75,
        0.9,
    )
    scenarios: Annotated[tuple[str, ...], flag(metavar="NAME")] = SCENARIOS
    result_dir: Annotated[str | None, flag("also write laboratory.json there")] = None


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One policy under one load; TTFT in multiples of the idle server's."""

    scenario: str
    load: float
    policy: str
    good: float
    short_p50: float
    short_p99: float
    long_p50: float
    long_p99: float
    worst: float
    tbt_p99_s: float
    tokens_per_s: float


def scenario_of(name: str, count: int) -> tuple[Deployment, list[PlannedRequest]]:
    """A deployment and requests whose arrivals have a mean rate of 1/s."""
    if name == "convoy":
        mix = PRESETS["convoy"]
        requests = with_arrivals(synthetic(mix, count, 0), arrival_times(1.0, 0))
        grid: dict[str, Any] = {
            "model": model_of("smollm2-135m"),
            "device": hardware_of("cpu-2core"),
            "tpot_s": 0.15,
        }
    else:
        options = TraceOptions(limit=count, long_threshold=16_384 if name == "mooncake" else 2048)
        trace = read_trace(trace_path(f"sample:{name}"), options)
        span = (trace[-1].at or 0.0) / len(trace)
        requests = [msgspec.structs.replace(r, at=(r.at or 0.0) / span, blocks=()) for r in trace]
        grid = {"model": model_of("llama-3-8b"), "device": hardware_of("a100"), "tpot_s": 0.1}
    deployment = Deployment(
        spp=2, max_model_len=max(8192, longest_of(requests) + 1), noise=0.03, **grid
    )
    return deployment, requests


def capacity_of(deployment: Deployment, requests: list[PlannedRequest]) -> float:
    """Requests per second when there is always something to do."""
    at_once = [msgspec.structs.replace(request, at=0.0) for request in requests]
    busy = msgspec.structs.replace(deployment, scheduler=scheduler_of("fcfs_chunked", {}))
    return len(requests) / play(busy, at_once).duration_s


def laboratory(asked: LaboratoryOptions, say: Say) -> int:
    """The whole command."""
    for kind, given, known in (
        ("policies", asked.policies, POLICIES),
        ("scenarios", asked.scenarios, SCENARIOS),
    ):
        if unknown := set(given) - set(known):
            raise LoadgenError(
                f"--{kind} {', '.join(sorted(unknown))}: known are {', '.join(known)}"
            )
    if asked.result_dir is not None:
        claim_directory(Path(asked.result_dir))
    found: list[Finding] = []
    for name in asked.scenarios:
        deployment, requests = scenario_of(name, QUICK if asked.quick else FULL)
        rate = capacity_of(deployment, requests)
        points = idle_points(
            msgspec.structs.replace(deployment, scheduler=scheduler_of("lars", {})), requests
        )
        say(f"{name}: {len(requests)} requests, capacity {rate:.3g}/s")
        for load in asked.loads:
            sent = [msgspec.structs.replace(r, at=(r.at or 0.0) / (rate * load)) for r in requests]
            new = [_find(deployment, sent, points, name, load, policy) for policy in asked.policies]
            print(
                f"{name}, {load:g} of {rate:.3g} requests/s\n{as_text(table_of(new))}\n", flush=True
            )
            found += new
    if asked.result_dir is not None:
        content = [msgspec.to_builtins(finding) for finding in found]
        (Path(asked.result_dir) / "laboratory.json").write_text(
            json.dumps(content, indent=1) + "\n"
        )
    return 0


def _find(
    deployment: Deployment,
    requests: list[PlannedRequest],
    points: Any,
    scenario: str,
    load: float,
    policy: str,
) -> Finding:
    name, more = POLICIES[policy]
    played = play(msgspec.structs.replace(deployment, scheduler=scheduler_of(name, more)), requests)
    expect(played.records, points)
    good = sum(_is_good(record) for record in played.records)
    short = ttfts(played.records, SHORT, normalised=True)
    long = ttfts(played.records, LONG, normalised=True)
    return Finding(
        scenario=scenario,
        load=load,
        policy=policy,
        good=good / len(played.records),
        short_p50=percentile(short, 50),
        short_p99=percentile(short, 99),
        long_p50=percentile(long, 50),
        long_p99=percentile(long, 99),
        worst=percentile(long, 100),
        tbt_p99_s=percentile(gaps(played.records), 99),
        tokens_per_s=sum(r.prompt_tokens + len(r.token_times) for r in played.records)
        / played.duration_s,
    )


def _is_good(record: RequestRecord) -> bool:
    if not len(record.token_times):
        return False
    ttft = record.token_times[0] - (record.sent_at or 0.0)
    return ttft <= max(_GOOD_S, _GOOD_TIMES * (record.isolated_ttft_s or 0.0))


def table_of(findings: list[Finding]) -> Table:
    """One line per policy."""
    header = [
        "policy",
        "good TTFT",
        "short P50",
        "short P99",
        "long P50",
        "long P99",
        "worst",
        "TBT P99",
        "tokens/s",
    ]
    rows = []
    for finding in findings:
        ttft = (
            finding.short_p50,
            finding.short_p99,
            finding.long_p50,
            finding.long_p99,
            finding.worst,
        )
        rows.append(
            [
                finding.policy,
                f"{100 * finding.good:.1f}%",
                *(f"{value:.3g}x" for value in ttft),
                f"{1000 * finding.tbt_p99_s:.0f} ms",
                f"{finding.tokens_per_s:,.0f}",
            ]
        )
    return header, rows
