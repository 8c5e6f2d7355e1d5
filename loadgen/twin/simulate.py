"""`medha-loadgen simulate`: a workload against a simulated deployment, reported like a real run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from loadgen.health import examine
from loadgen.objectives import parse_objectives
from loadgen.options import Options
from loadgen.plan import build_plan
from loadgen.results import Terms, claim_directory, write_results
from loadgen.run import Say
from loadgen.twin.options import TwinOptions, deployment_of
from loadgen.twin.replay import expect, idle_points, longest_of, play, run_of


def simulate(options: Options, twin: TwinOptions, directory: Path, say: Say) -> dict[str, Any]:
    """The whole command; returns what is in result.json. Raises LoadgenError."""
    objectives = parse_objectives(options.goodput, options.goodput_long)
    terms = Terms(
        objectives=objectives, percentiles=options.percentiles(), attainment=options.attainment
    )
    plan = build_plan(options)
    deployment = deployment_of(twin, longest_of(plan.requests))
    say(
        f"{plan.describe()}\n{deployment.model.name} on {deployment.devices} x "
        f"{deployment.device.name}, {deployment.name}, policy {deployment.scheduler.policy}"
    )
    claim_directory(directory)
    began, wall = time.process_time(), time.time()
    played = play(
        deployment, plan.requests, concurrency=options.max_concurrency if plan.closed_loop else None
    )
    seconds = time.process_time() - began
    points = idle_points(deployment, plan.requests)
    expect(played.records, points)
    say(
        f"{played.duration_s:,.1f} s of service simulated in {seconds:.1f} s of CPU, "
        f"{played.batches:,} batches"
    )
    config = {
        **options.public(),
        "plan": plan.describe(),
        "cpu_seconds": round(seconds, 2),
        "command": sys.argv[1:],
    }
    run = run_of(deployment, played, points, config, options.label)
    run.started_at, run.open_loop = wall, not plan.closed_loop
    return write_results(run, terms, examine(run, exact_outputs=True), directory)
