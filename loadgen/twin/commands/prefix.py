"""`medha-loadgen prefix`: what the prefix cache saves, in simulation: one workload with it and
without.

What the deployment sustains is the rate at which it works through all requests when they are there
at once (of sessions, without pauses). Both settings then see the same arrivals, at shares of what
is sustained without the cache. The bound of the hit rate is a cache that forgets nothing, in which
every earlier prompt is found by the next one at once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import msgspec

from loadgen.errors import LoadgenError
from loadgen.flags import flag
from loadgen.judge.latencies import percentile, ttfts
from loadgen.judge.metrics import hits_of
from loadgen.records import PlannedRequest, RequestRecord
from loadgen.show.output import Say, claim_directory
from loadgen.show.tables import Table, as_markdown, as_text
from loadgen.twin.deployment import Deployment
from loadgen.twin.options import DeploymentOptions, deployment_of
from loadgen.twin.replay import longest_of, play
from loadgen.workload.options import PaceOptions, WorkloadOptions
from loadgen.workload.plan import build_plan


class PrefixOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command is given beside deployment and workload."""

    loads: Annotated[
        tuple[float, ...],
        flag("of what is sustained without the cache", metavar="SHARE", gt=0, le=100),
    ] = (0.5, 0.9, 1.2)
    result_dir: Annotated[
        str | None, flag("also write prefix.md and prefix.json there")
    ] = None


class Times(msgspec.Struct, frozen=True):
    """Seconds to the first token."""

    p50: float
    p90: float
    p99: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One setting under one load."""

    load: float
    rate: float  # requests/s offered
    cache: bool
    hit_rate: float
    hit_bound: float
    ttft: Times
    warm: Times
    cold: Times
    failed: int


class Sustained(msgspec.Struct, frozen=True, kw_only=True):
    """Requests per second when there is always something to do."""

    without: float
    cached: float
    hit_rate: float

    def told(self) -> str:
        """One line."""
        return (
            f"sustained: {self.without:.3g} requests/s without the cache, {self.cached:.3g} with "
            f"it ({100 * self.hit_rate:.1f}% hits)"
        )


def prefix(
    asked: PrefixOptions,
    on: DeploymentOptions,
    workload: WorkloadOptions,
    pace: PaceOptions,
    say: Say,
) -> int:
    """The whole command."""
    if pace.closed_loop:
        raise LoadgenError("prefix sets the rates itself: leave out --max-concurrency")
    plan = build_plan(workload, _timed(pace, workload))
    requests = plan.requests
    if requests[0].known_tokens is None:
        raise LoadgenError(
            "nothing is shared in this workload: use --sessions, or --dataset-path with blocks"
        )
    if asked.result_dir is not None:
        claim_directory(Path(asked.result_dir))
    deployment = deployment_of(on, longest_of(requests), workload.seed)
    say(
        f"{plan.describe()}\n{deployment.model.name} on {deployment.devices} x "
        f"{deployment.device.name}, {deployment.name}, policy {deployment.scheduler.policy}; "
        f"room for {deployment.kv_tokens * deployment.kvp * deployment.replicas:,} tokens"
    )
    sustained = _sustained(deployment, requests)
    say(sustained.told())
    outcomes = []
    for load in asked.loads:
        for cache in (False, True):
            sent = at_rate(requests, sustained.without * load)
            outcomes.append(
                _outcome(deployment, sent, sustained.without * load, load, cache)
            )
    print(f"{as_text(table_of(outcomes))}\n\n{sustained.told()}", flush=True)
    if asked.result_dir is not None:
        directory = Path(asked.result_dir)
        (directory / "prefix.md").write_text(
            f"{as_markdown(table_of(outcomes))}\n\n{sustained.told()}\n"
        )
        content = {
            "sustained": msgspec.to_builtins(sustained),
            "outcomes": msgspec.to_builtins(outcomes),
        }
        (directory / "prefix.json").write_text(json.dumps(content, indent=1) + "\n")
    return 0


def _timed(pace: PaceOptions, workload: WorkloadOptions) -> PaceOptions:
    """What has no times of its own comes at some rate: it is scaled anyway."""
    if pace.request_rate is None and workload.dataset_path is None:
        return msgspec.structs.replace(pace, request_rate=1.0)
    return pace


def at_rate(requests: list[PlannedRequest], rate: float) -> list[PlannedRequest]:
    """The same arrivals, so dense that `rate` requests (all turns of sessions counted) come per
    second."""
    last = max([request.at or 0.0 for request in requests])
    if not last:
        raise LoadgenError("the requests come all at once: give a --request-rate")
    factor = len(requests) / (rate * last)
    return [
        request
        if request.at is None
        else msgspec.structs.replace(request, at=request.at * factor)
        for request in requests
    ]


def _sustained(deployment: Deployment, requests: list[PlannedRequest]) -> Sustained:
    at_once = [_at_once(request) for request in requests]
    rates = []
    hits = 0.0
    for cache in (False, True):
        played = play(_with(deployment, cache), at_once)
        rates.append(len(requests) / played.duration_s)
        hits = hits_of(played.records).get("hit_rate", 0.0)
    return Sustained(without=rates[0], cached=rates[1], hit_rate=hits)


def _at_once(request: PlannedRequest) -> PlannedRequest:
    turn = request.turn
    if turn is not None:
        turn = msgspec.structs.replace(turn, pause_s=0.0)
    return msgspec.structs.replace(
        request, at=None if request.at is None else 0.0, turn=turn
    )


def _with(deployment: Deployment, cache: bool) -> Deployment:
    return msgspec.structs.replace(deployment, prefix_cache=cache)


def _outcome(
    deployment: Deployment,
    requests: list[PlannedRequest],
    rate: float,
    load: float,
    cache: bool,
) -> Outcome:
    records = play(_with(deployment, cache), requests).records
    completed = [record for record in records if record.completed]
    hits = hits_of(completed)
    return Outcome(
        load=load,
        rate=rate,
        cache=cache,
        hit_rate=hits.get("hit_rate", 0.0),
        hit_bound=hits.get("hit_bound", 0.0),
        ttft=_times(completed),
        warm=_times([record for record in completed if record.warm]),
        cold=_times([record for record in completed if not record.warm]),
        failed=len(records) - len(completed),
    )


def _times(records: list[RequestRecord]) -> Times:
    found = ttfts(records)
    return Times(*(percentile(found, percent) for percent in (50, 90, 99)))


def table_of(outcomes: list[Outcome]) -> Table:
    """Two lines for every load; TTFT as P50, P90 and P99."""
    header = ["load", "requests/s", "cache", "hit rate", "bound"]
    header += ["TTFT, ms", "warm", "cold", "failed"]
    rows = []
    for outcome in outcomes:
        rows.append(
            [
                f"{outcome.load:g}",
                f"{outcome.rate:.3g}",
                "on" if outcome.cache else "off",
                f"{100 * outcome.hit_rate:.1f}%",
                f"{100 * outcome.hit_bound:.1f}%",
                _shown(outcome.ttft),
                _shown(outcome.warm),
                _shown(outcome.cold),
                str(outcome.failed),
            ]
        )
    return header, rows


def _shown(times: Times) -> str:
    return " / ".join(
        f"{1000 * seconds:,.0f}" for seconds in (times.p50, times.p90, times.p99)
    )
