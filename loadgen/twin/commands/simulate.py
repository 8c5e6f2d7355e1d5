"""`medha-loadgen simulate`: a workload against a simulated deployment, reported like a real run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec

from loadgen.errors import LoadgenError
from loadgen.flags import flag
from loadgen.judge.health import examine
from loadgen.judge.options import JudgementOptions
from loadgen.options import public
from loadgen.show.options import ReportOptions
from loadgen.show.output import Say, claim_directory
from loadgen.show.results import write_results
from loadgen.twin.fleet.playing import play_fleet
from loadgen.twin.fleet.simulation import FleetOptions
from loadgen.twin.options import DeploymentOptions, deployment_of
from loadgen.twin.replay import expect, idle_points, longest_of, play, run_of
from loadgen.workload.options import PaceOptions, WorkloadOptions
from loadgen.workload.plan import build_plan
from medha_actors.fleet.routing import RULES
from medha_actors.fleet_config import RoutingConfig


class RoutingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Several grids behind routers; without a router, replicas take the requests in turn."""

    router: Annotated[
        str | None, flag("who gets a request: docs/fleet.md", choices=tuple(RULES))
    ] = None
    grids: Annotated[int | None, flag("as --replicas", shown="2", ge=1, le=1024)] = None
    ingresses: Annotated[
        int, flag("routers, each with an eye of its own", ge=1, le=64)
    ] = 2

    def options(self, long_tokens: int) -> FleetOptions | None:
        """None: no router; raises LoadgenError."""
        if self.router is None:
            if self.grids is not None:
                raise LoadgenError("--grids needs a --router")
            return None
        given = {"router": self.router, "long_tokens": max(1, long_tokens)}
        routing = msgspec.convert(given, RoutingConfig)
        return FleetOptions(routing=routing, ingresses=self.ingresses)


class SimulateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command is given."""

    deployment: DeploymentOptions = DeploymentOptions()
    routing: RoutingOptions = RoutingOptions()
    workload: WorkloadOptions = WorkloadOptions()
    pace: PaceOptions = PaceOptions()
    judgement: JudgementOptions = JudgementOptions()
    report: ReportOptions = ReportOptions()


def simulate(options: SimulateOptions, directory: Path, say: Say) -> dict[str, Any]:
    """The whole command; returns what is in result.json. Raises LoadgenError."""
    terms = options.judgement.terms()
    plan = build_plan(options.workload, options.pace)
    longest = longest_of(plan.requests)
    deployment = deployment_of(options.deployment, longest, options.workload.seed)
    fleet = options.routing.options(options.workload.long_threshold)
    if fleet is not None:
        grids = options.routing.grids or max(2, deployment.replicas)
        deployment = msgspec.structs.replace(deployment, replicas=grids)
    say(
        f"{plan.describe()}\n{deployment.model.name} on {deployment.devices} x "
        f"{deployment.device.name}, {deployment.name}, policy {deployment.scheduler.policy}"
    )
    claim_directory(directory)
    started_at = time.time()
    began = time.process_time()
    concurrency = options.pace.max_concurrency if plan.closed_loop else None
    if fleet is None:
        played = play(deployment, plan.requests, concurrency=concurrency)
    else:
        played = play_fleet(deployment, plan.requests, fleet, concurrency=concurrency)
    seconds = time.process_time() - began
    points = idle_points(deployment, plan.requests)
    expect(played.records, points)
    say(
        f"{played.duration_s:,.1f} s of service simulated in {seconds:.1f} s of CPU, "
        f"{played.batches:,} batches"
    )
    config = {
        **public(options.workload, options.pace, options.judgement, options.report),
        "router": options.routing.router,
        "plan": plan.describe(),
        "cpu_seconds": round(seconds, 2),
        "command": sys.argv[1:],
    }
    run = run_of(deployment, played, points, config, options.report.label)
    run.started_at = started_at
    run.open_loop = not plan.closed_loop
    return write_results(run, terms, examine(run, exact_outputs=True), directory)
