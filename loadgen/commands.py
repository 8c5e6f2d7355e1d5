"""The commands: from parsed arguments to what stands on the terminal and the exit status."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loadgen import cli
from loadgen.capacity.command import capacity
from loadgen.capacity.outcome import summary, table_of
from loadgen.capacity.search import SearchOptions
from loadgen.experiment.command import run_experiment
from loadgen.experiment.options import ExperimentOptions
from loadgen.flags import fill
from loadgen.judge.health import Health
from loadgen.options import RunOptions
from loadgen.run import run
from loadgen.selftest import SelfTestOptions, selftest
from loadgen.show.compare import read_runs, tables, warnings, write_comparison
from loadgen.show.output import directory_of, say
from loadgen.show.tables import all_and_classes, as_text, class_table
from loadgen.twin.commands.fidelity import FidelityOptions, fidelity
from loadgen.twin.commands.fleet import FleetCommand, fleet
from loadgen.twin.commands.laboratory import LaboratoryOptions, laboratory
from loadgen.twin.commands.overload import OverloadOptions, overload
from loadgen.twin.commands.planner import plan
from loadgen.twin.commands.prefix import PrefixOptions, prefix
from loadgen.twin.commands.promises import PromisesOptions, promises
from loadgen.twin.commands.simulate import simulate
from loadgen.twin.options import DeploymentOptions
from loadgen.twin.paper.reproduce import ReproduceOptions, reproduce
from loadgen.workload.options import PaceOptions, WorkloadOptions


def _run(arguments: argparse.Namespace) -> int:
    options = cli.run_options(arguments)
    directory = _directory(options, "run")
    result, health, status = asyncio.run(run(options, directory, say))
    _print_result(result)
    _print_health(health, status)
    print(f"results: {directory / 'report.html'}")
    return status


def _capacity(arguments: argparse.Namespace) -> int:
    options = cli.run_options(arguments)
    search = fill(arguments, SearchOptions)
    directory = _directory(options, "capacity")
    outcome, status = asyncio.run(capacity(options, search, directory, say))
    print(f"{as_text(table_of(outcome))}\n\n{summary(outcome)}")
    print(f"results: {directory / 'report.html'}")
    return status


def _compare(arguments: argparse.Namespace) -> int:
    runs = read_runs([Path(directory) for directory in arguments.directories])
    for title, table in tables(runs):
        if table[1]:
            print(f"{title}\n{as_text(table)}\n")
    for doubt in warnings(runs):
        print(f"note: {doubt}")
    target = getattr(arguments, "result_dir", None)
    if target is not None:
        write_comparison(runs, Path(target))
        print(f"results: {Path(target) / 'compare.html'}")
    return 0


def _selftest(arguments: argparse.Namespace) -> int:
    print(json.dumps(selftest(fill(arguments, SelfTestOptions)), indent=2))
    return 0


def _experiment(arguments: argparse.Namespace) -> int:
    rows, file = run_experiment(fill(arguments, ExperimentOptions), say)
    print(f"{as_text(rows)}\n\nresults: {file}")
    return 0


def _simulate(arguments: argparse.Namespace) -> int:
    options = cli.simulate_options(arguments)
    name = options.report.label or options.deployment.policy
    directory = directory_of(options.report.result_dir, f"simulated-{name}")
    _print_result(simulate(options, directory, say))
    print(f"\nresults: {directory / 'report.html'}")
    return 0


def _reproduce(arguments: argparse.Namespace) -> int:
    return reproduce(fill(arguments, ReproduceOptions), say)


def _prefix(arguments: argparse.Namespace) -> int:
    return prefix(
        fill(arguments, PrefixOptions),
        fill(arguments, DeploymentOptions),
        fill(arguments, WorkloadOptions),
        fill(arguments, PaceOptions),
        say,
    )


def _plan(arguments: argparse.Namespace) -> int:
    return plan(cli.plan_options(arguments), say)


def _fidelity(arguments: argparse.Namespace) -> int:
    return fidelity(fill(arguments, FidelityOptions), say)


def _laboratory(arguments: argparse.Namespace) -> int:
    return laboratory(fill(arguments, LaboratoryOptions), say)


def _promises(arguments: argparse.Namespace) -> int:
    return promises(fill(arguments, PromisesOptions), say)


def _overload(arguments: argparse.Namespace) -> int:
    return overload(fill(arguments, OverloadOptions), say)


def _fleet(arguments: argparse.Namespace) -> int:
    return fleet(fill(arguments, FleetCommand), fill(arguments, DeploymentOptions), say)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": _run,
    "capacity": _capacity,
    "compare": _compare,
    "selftest": _selftest,
    "experiment": _experiment,
    "simulate": _simulate,
    "reproduce": _reproduce,
    "prefix": _prefix,
    "plan": _plan,
    "fidelity": _fidelity,
    "laboratory": _laboratory,
    "promises": _promises,
    "overload": _overload,
    "fleet": _fleet,
}


def _directory(options: RunOptions, command: str) -> Path:
    name = options.report.label or options.watch.policy or command
    return directory_of(options.report.result_dir, name)


def _print_health(health: Health, status: int) -> None:
    """What failed, what to do about it, and what it means for the exit code."""
    print(f"\nload generator's own health: {'PASSED' if health.passed else 'FAILED'}")
    for check in health.failures:
        print(
            f"  {check.title.lower()}: {check.summary}\n    what to do: {check.advice}"
        )
    if not health.passed and status == 0:
        print(
            "  exit code 0 all the same: the results are written (--fail-unhealthy: 3)"
        )


def _print_result(result: Mapping[str, Any]) -> None:
    print(as_text(class_table(all_and_classes(result))))
    for message, count in result["errors"].items():
        print(f"{count} x {message}")
