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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from loadgen.errors import LoadgenError
from loadgen.flags import flag
from loadgen.judge.isolated import Points
from loadgen.judge.metrics import measure
from loadgen.judge.objectives import Bound, Objectives
from loadgen.judge.options import JudgementOptions, Terms
from loadgen.records import LONG, SHORT, PlannedRequest
from loadgen.show.output import Say, claim_directory
from loadgen.show.tables import Table, as_text
from loadgen.twin.deployment import Deployment
from loadgen.twin.hardware import hardware_of
from loadgen.twin.models import model_of
from loadgen.twin.options import scheduler_of
from loadgen.twin.replay import expect, idle_points, longest_of, play
from loadgen.twin.serve_config import serve_config
from loadgen.workload.options import PaceOptions, WorkloadOptions
from loadgen.workload.plan import build_plan
from medha_actors.config import SchedulerConfig

EXIT_INFEASIBLE = 1


class GridOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the search may try."""

    model: Annotated[str, flag("as for simulate")] = "llama-3-8b"
    gpu: Annotated[str, flag("as for simulate")] = "h100"
    max_gpus: Annotated[int, flag("largest deployment to try", ge=1)] = 64
    tp: Annotated[tuple[int, ...], flag("values to try", metavar="N", ge=1)] = (
        1,
        2,
        4,
        8,
    )
    spp: Annotated[tuple[int, ...], flag(metavar="N", ge=1)] = (1, 2, 4, 8, 16)
    kvp: Annotated[tuple[int, ...], flag(metavar="N", ge=1)] = (1, 2, 4)
    policy: Annotated[str, flag("scheduling policy")] = SchedulerConfig().policy
    sample: Annotated[int, flag("requests to simulate a deployment with", ge=1)] = 400
    result_dir: Annotated[
        str | None, flag("also write plan.json and serve_config.yaml there")
    ] = None


class PlanOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command is given."""

    grids: GridOptions = GridOptions()
    workload: WorkloadOptions = WorkloadOptions()
    pace: PaceOptions = PaceOptions()
    judgement: JudgementOptions = JudgementOptions()


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One grid: how many replicas it takes (None: it cannot), the share of good requests, or the
    reason why not."""

    deployment: Deployment
    share: float | None = None
    reason: str = ""

    @property
    def good(self) -> bool:
        return not self.reason


def plan(options: PlanOptions, say: Say) -> int:
    """The whole command; 0 if there is a deployment, else 1."""
    terms = options.judgement.terms()
    if not terms.objectives:
        raise LoadgenError("plan needs objectives: --goodput ttft:2000 tpot:50")
    requests = _sample(options)
    verdicts = search(requests, terms, options.grids, options.workload.seed, say)
    print(as_text(table_of(verdicts)))
    winners = [verdict for verdict in verdicts if verdict.good]
    winners.sort(
        key=lambda verdict: (verdict.deployment.devices, -(verdict.share or 0))
    )
    if not winners:
        print("\nNo deployment meets the objectives. " + _best_reason(verdicts))
        return EXIT_INFEASIBLE
    best = winners[0].deployment
    print(
        f"\nCheapest: {best.devices} x {best.device.name}, {best.name}\n\n{serve_config(best)}"
    )
    if options.grids.result_dir is not None:
        _write(Path(options.grids.result_dir), best, verdicts)
    return 0


def _write(directory: Path, best: Deployment, verdicts: Sequence[Verdict]) -> None:
    """serve_config.yaml and plan.json in a new directory."""
    claim_directory(directory)
    (directory / "serve_config.yaml").write_text(serve_config(best))
    rows = [
        {
            "grid": verdict.deployment.name,
            "devices": verdict.deployment.devices,
            "share": verdict.share,
            "reason": verdict.reason,
        }
        for verdict in verdicts
    ]
    content = {"verdicts": rows, "best": best.name}
    (directory / "plan.json").write_text(json.dumps(content, indent=2) + "\n")


def _sample(options: PlanOptions) -> list[PlannedRequest]:
    """The first requests of the workload, which must have arrival times."""
    workload = options.workload
    if workload.num_prompts is None:
        workload = msgspec.structs.replace(workload, num_prompts=options.grids.sample)
    sample = build_plan(workload, options.pace)
    if sample.closed_loop or sample.requests[-1].at in (None, 0.0):
        raise LoadgenError("plan needs arrivals: --request-rate, or a trace with times")
    return sample.requests


def search(
    requests: Sequence[PlannedRequest],
    terms: Terms,
    allowed: GridOptions,
    seed: int,
    say: Say,
) -> list[Verdict]:
    """A verdict on every grid, smallest first."""
    grids = sorted(
        itertools.product(allowed.tp, allowed.spp, allowed.kvp),
        key=lambda grid: (math.prod(grid), grid[2]),
    )
    verdicts: list[Verdict] = []
    cheapest = allowed.max_gpus
    for tp, spp, kvp in grids:
        deployment = _deployment(
            requests, terms.objectives, allowed, (tp, spp, kvp), seed
        )
        if deployment.devices > allowed.max_gpus:
            continue
        try:
            reason = impossible(deployment, requests, terms.objectives)
        except LoadgenError as error:
            reason = str(error).removeprefix(f"{deployment.name}: ")
        if reason:
            verdicts.append(Verdict(deployment=deployment, reason=reason))
        elif deployment.devices <= cheapest:
            say(f"trying {deployment.name}")
            verdict = replicate(deployment, requests, terms, cheapest)
            verdicts.append(verdict)
            if verdict.good:
                cheapest = min(cheapest, verdict.deployment.devices)
    return verdicts


def _deployment(
    requests: Sequence[PlannedRequest],
    objectives: Objectives,
    allowed: GridOptions,
    grid: tuple[int, int, int],
    seed: int,
) -> Deployment:
    tp, spp, kvp = grid
    longest = longest_of(requests)
    tpot = objectives.default.get("tpot")
    tpot_s = 0.05
    if tpot is not None and tpot.seconds is not None:
        tpot_s = 0.9 * tpot.seconds  # aim below the objective
    return Deployment(
        model=model_of(allowed.model),
        device=hardware_of(allowed.gpu),
        tp=tp,
        spp=spp,
        kvp=kvp,
        max_model_len=longest + 1,
        max_tokens_per_kvp_group=-(-(longest + 1) // kvp),
        tpot_s=tpot_s,
        scheduler=scheduler_of(allowed.policy, {}),
        seed=seed,
    )


def impossible(
    deployment: Deployment, requests: Sequence[PlannedRequest], objectives: Objectives
) -> str:
    """Why physics forbids it; empty: it does not. Raises LoadgenError for what does not fit at
    all."""
    deployment.check(longest_of(requests))
    bounds_by_class = {
        SHORT: objectives.default,
        LONG: {**objectives.default, **objectives.long},
    }
    for kind, bounds in bounds_by_class.items():
        prompts = sorted(
            request.prompt_tokens for request in requests if request.kind == kind
        )
        if not prompts:
            continue
        reason = _too_slow(deployment, prompts[len(prompts) // 2], bounds)
        if reason:
            return reason
    return ""


def _too_slow(deployment: Deployment, typical: int, bounds: Mapping[str, Bound]) -> str:
    """Why one lone request with a prompt of `typical` tokens cannot be as fast as asked."""
    tpot = bounds.get("tpot")
    if tpot is not None and tpot.seconds is not None:
        floor = deployment.decode_s(typical)
        if floor > tpot.seconds:
            return (
                f"a lone decode at {typical:,} tokens takes {1000 * floor:.1f} ms, asked are "
                f"{1000 * tpot.seconds:g}"
            )
    ttft = bounds.get("ttft")
    if ttft is not None and ttft.seconds is not None and ttft.times_isolated is None:
        floor = deployment.prefill_floor_s(typical)
        if floor > ttft.seconds:
            return (
                f"a lone prefill of {typical:,} tokens takes {floor:.2f} s at best, asked are "
                f"{ttft.seconds:g}"
            )
    return ""


def replicate(
    deployment: Deployment, requests: Sequence[PlannedRequest], terms: Terms, most: int
) -> Verdict:
    """The fewest replicas that serve the traffic, of at most `most` devices: doubled, then
    bisected."""
    objectives = terms.objectives
    points = idle_points(deployment, requests) if objectives.relative else []
    allowed = most // deployment.devices

    def with_replicas(count: int) -> Deployment:
        return msgspec.structs.replace(deployment, replicas=count)

    def share(count: int) -> float:
        return share_good(with_replicas(count), requests, objectives, points)

    count, best = fewest(share, terms.attainment, allowed)
    if count is None:
        plural = "s" if allowed > 1 else ""
        reason = (
            f"{100 * best:.1f}% of the requests are good with {allowed} replica{plural}"
        )
        return Verdict(deployment=deployment, share=best, reason=reason)
    return Verdict(deployment=with_replicas(count), share=best)


def fewest(
    share: Callable[[int], float], wanted: float, most: int
) -> tuple[int | None, float]:
    """The fewest replicas with the wanted share of good requests, and that share."""
    low = 0
    high = 1
    at_high = 0.0
    while (at_high := share(high)) < wanted:
        if high >= most:
            return None, at_high
        low = high
        high = min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        at = share(middle)
        if at >= wanted:
            high = middle
            at_high = at
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
    return sum(measure(record, objectives).good is True for record in records) / len(
        records
    )


def table_of(verdicts: Sequence[Verdict]) -> Table:
    """Feasible grids first, cheapest first."""
    rows = []
    for verdict in sorted(verdicts, key=lambda v: (not v.good, v.deployment.devices)):
        share = "-" if verdict.share is None else f"{100 * verdict.share:.1f}%"
        outcome = "meets the objectives" if verdict.good else verdict.reason
        rows.append(
            [verdict.deployment.name, str(verdict.deployment.devices), share, outcome]
        )
    return ["grid", "devices", "good", "verdict"], rows


def _best_reason(verdicts: Sequence[Verdict]) -> str:
    nearest = max(
        verdicts, key=lambda v: (v.share or -1.0, v.deployment.devices), default=None
    )
    return (
        ""
        if nearest is None
        else f"Nearest: {nearest.deployment.name}: {nearest.reason}."
    )
