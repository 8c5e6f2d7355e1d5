"""`medha-loadgen plan`: the cheapest deployment that meets objectives, by simulation of the real
scheduler.

Every grid (tp, spp, kvp) is first held against physics: do the weights fit, does the longest
request, can one lone request be as fast as asked. What is left is simulated with one replica; the
number of replicas is the smallest whose share of the traffic it serves. Grids that need more
devices than the best found so far are not tried.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from loadgen.errors import LoadgenError
from loadgen.isolated import Points
from loadgen.metrics import measure
from loadgen.objectives import Objectives, parse_objectives
from loadgen.options import Options
from loadgen.plan import build_plan
from loadgen.records import PlannedRequest
from loadgen.results import claim_directory
from loadgen.run import Say
from loadgen.tables import Table, as_text
from loadgen.twin.deployment import Deployment
from loadgen.twin.hardware import hardware_of
from loadgen.twin.models import model_of
from loadgen.twin.options import scheduler_of
from loadgen.twin.replay import expect, idle_points, longest_of, play
from loadgen.twin.serve_config import serve_config

EXIT_INFEASIBLE = 1


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the search may try."""

    model: str = "llama-3-8b"
    gpu: str = "h100"
    max_gpus: int = 64
    tp: tuple[int, ...] = (1, 2, 4, 8)
    spp: tuple[int, ...] = (1, 2, 4, 8, 16)
    kvp: tuple[int, ...] = (1, 2, 4)
    policy: str = "lars"
    sample: int = 400
    seed: int = 0
    result_dir: str | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One grid: how many replicas it takes (None: it cannot), the share of good requests, or the
    reason why not."""

    deployment: Deployment
    share: float | None = None
    reason: str = ""

    @property
    def good(self) -> bool:
        return not self.reason


def plan(options: Options, wanted: Wanted, say: Say) -> int:
    """The whole command; 0 if there is a deployment, else 1."""
    objectives = parse_objectives(options.goodput, options.goodput_long)
    if not objectives:
        raise LoadgenError("plan needs objectives: --goodput ttft:2000 tpot:50")
    requests = _sample(options, wanted)
    verdicts = search(requests, objectives, options.attainment, wanted, say)
    print(as_text(table_of(verdicts)))
    winners = sorted(
        (v for v in verdicts if v.good), key=lambda v: (v.deployment.devices, -(v.share or 0))
    )
    if not winners:
        print("\nNo deployment meets the objectives. " + _best_reason(verdicts))
        return EXIT_INFEASIBLE
    best = winners[0].deployment
    print(f"\nCheapest: {best.devices} x {best.device.name}, {best.name}\n\n{serve_config(best)}")
    runnable = next((v.deployment for v in winners if v.deployment.tp == 1), None)
    if best.tp > 1:
        other = (
            "no grid with tp 1 meets them"
            if runnable is None
            else f"{runnable.devices} devices, {runnable.name}"
        )
        print(f"This server has no tensor parallelism of its own yet. Cheapest without: {other}.")
    if wanted.result_dir is not None:
        directory = Path(wanted.result_dir)
        claim_directory(directory)
        (directory / "serve_config.yaml").write_text(serve_config(best))
        rows = [
            {
                "grid": v.deployment.name,
                "devices": v.deployment.devices,
                "share": v.share,
                "reason": v.reason,
            }
            for v in verdicts
        ]
        (directory / "plan.json").write_text(
            json.dumps({"verdicts": rows, "best": best.name}, indent=2) + "\n"
        )
    return 0


def _sample(options: Options, wanted: Wanted) -> list[PlannedRequest]:
    """The first requests of the workload, which must have arrival times."""
    if options.num_prompts is None:
        options = msgspec.structs.replace(options, num_prompts=wanted.sample)
    found = build_plan(options)
    if found.closed_loop or found.requests[-1].at in (None, 0.0):
        raise LoadgenError("plan needs arrivals: --request-rate, or a trace with times")
    return found.requests


def search(
    requests: Sequence[PlannedRequest],
    objectives: Objectives,
    attainment: float,
    wanted: Wanted,
    say: Say,
) -> list[Verdict]:
    """A verdict on every grid, smallest first."""
    grids = sorted(
        itertools.product(wanted.tp, wanted.spp, wanted.kvp),
        key=lambda grid: (math.prod(grid), grid[2]),
    )
    verdicts: list[Verdict] = []
    cheapest = wanted.max_gpus
    for tp, spp, kvp in grids:
        deployment = _deployment(requests, objectives, wanted, tp, spp, kvp)
        if deployment.devices > wanted.max_gpus:
            continue
        try:
            reason = impossible(deployment, requests, objectives)
        except LoadgenError as error:
            reason = str(error).removeprefix(f"{deployment.name}: ")
        if reason:
            verdicts.append(Verdict(deployment=deployment, reason=reason))
        elif deployment.devices <= cheapest:
            say(f"trying {deployment.name}")
            verdict = replicate(deployment, requests, objectives, attainment, cheapest)
            verdicts.append(verdict)
            cheapest = min(cheapest, verdict.deployment.devices) if verdict.good else cheapest
    return verdicts


def _deployment(
    requests: Sequence[PlannedRequest],
    objectives: Objectives,
    wanted: Wanted,
    tp: int,
    spp: int,
    kvp: int,
) -> Deployment:
    tpot = objectives.default.get("tpot")
    longest = longest_of(requests)
    return Deployment(
        model=model_of(wanted.model),
        device=hardware_of(wanted.gpu),
        tp=tp,
        spp=spp,
        kvp=kvp,
        max_model_len=longest + 1,
        max_tokens_per_kvp_group=-(-(longest + 1) // kvp),
        tpot_s=0.05
        if tpot is None or tpot.seconds is None
        else 0.9 * tpot.seconds,  # aim below the objective
        scheduler=scheduler_of(wanted.policy, {}),
        seed=wanted.seed,
    )


def impossible(
    deployment: Deployment, requests: Sequence[PlannedRequest], objectives: Objectives
) -> str:
    """Why physics forbids it; empty: it does not. Raises LoadgenError for what does not fit at
    all."""
    deployment.check(longest_of(requests))
    for kind, bounds in (
        ("short", objectives.default),
        ("long", {**objectives.default, **objectives.long}),
    ):
        own = [request for request in requests if request.kind == kind]
        if not own:
            continue
        prompts = sorted(request.prompt_tokens for request in own)
        ttft, tpot = bounds.get("ttft"), bounds.get("tpot")
        typical = prompts[len(prompts) // 2]
        if (
            tpot is not None
            and tpot.seconds is not None
            and (floor := deployment.decode_s(typical)) > tpot.seconds
        ):
            return (
                f"a lone decode at {typical:,} tokens takes {1000 * floor:.1f} ms, asked are "
                f"{1000 * tpot.seconds:g}"
            )
        if ttft is not None and ttft.seconds is not None and ttft.times_isolated is None:
            floor = deployment.prefill_floor_s(typical)
            if floor > ttft.seconds:
                return (
                    f"a lone prefill of {typical:,} tokens takes {floor:.2f} s at best, asked are "
                    f"{ttft.seconds:g}"
                )
    return ""


def replicate(
    deployment: Deployment,
    requests: Sequence[PlannedRequest],
    objectives: Objectives,
    attainment: float,
    most: int,
) -> Verdict:
    """The fewest replicas that serve the traffic, of at most `most` devices: doubled, then
    bisected."""
    points = idle_points(deployment, requests) if objectives.relative else []
    allowed = most // deployment.devices

    def share(replicas: int) -> float:
        return share_good(
            msgspec.structs.replace(deployment, replicas=replicas), requests, objectives, points
        )

    found, best = fewest(lambda replicas: share(replicas), attainment, allowed)
    if found is None:
        text = (
            f"{100 * best:.1f}% of the requests are good with {allowed} "
            f"replica{'s' if allowed > 1 else ''}"
        )
        return Verdict(deployment=deployment, share=best, reason=text)
    return Verdict(deployment=msgspec.structs.replace(deployment, replicas=found), share=best)


def fewest(share: Callable[[int], float], wanted: float, most: int) -> tuple[int | None, float]:
    """The fewest replicas with the wanted share of good requests, and that share."""
    low, high, at_high = 0, 1, 0.0
    while (at_high := share(high)) < wanted:
        if high >= most:
            return None, at_high
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        at = share(middle)
        if at >= wanted:
            high, at_high = middle, at
        else:
            low = middle
    return high, at_high


def share_good(
    deployment: Deployment,
    requests: Sequence[PlannedRequest],
    objectives: Objectives,
    points: Points,
) -> float:
    """Share of the requests that meet all objectives. One replica stands for all: it gets every
    n-th request."""
    one = msgspec.structs.replace(deployment, replicas=1)
    records = play(one, requests[:: deployment.replicas]).records
    expect(records, points)
    return sum(measure(record, objectives).good is True for record in records) / len(records)


def table_of(verdicts: Sequence[Verdict]) -> Table:
    """Feasible grids first, cheapest first."""
    rows = []
    for verdict in sorted(verdicts, key=lambda v: (not v.good, v.deployment.devices)):
        share = "-" if verdict.share is None else f"{100 * verdict.share:.1f}%"
        outcome = "meets the objectives" if verdict.good else verdict.reason
        rows.append([verdict.deployment.name, str(verdict.deployment.devices), share, outcome])
    return ["grid", "devices", "good", "verdict"], rows


def _best_reason(verdicts: Sequence[Verdict]) -> str:
    nearest = max(verdicts, key=lambda v: (v.share or -1.0, v.deployment.devices), default=None)
    return "" if nearest is None else f"Nearest: {nearest.deployment.name}: {nearest.reason}."
