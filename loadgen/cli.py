"""The command line. Flags are those of `vllm bench serve` where it has one; each stands, with its
default and its bounds, in the Struct that it fills (loadgen.flags)."""

from __future__ import annotations

import argparse
from typing import TypeAlias

import msgspec

from loadgen.capacity.search import SearchOptions
from loadgen.errors import EXIT_CODES
from loadgen.experiment.cells import KINDS
from loadgen.experiment.options import ExperimentOptions
from loadgen.flags import add_flags, fill
from loadgen.judge.options import JudgementOptions
from loadgen.options import RunOptions
from loadgen.selftest import SelfTestOptions
from loadgen.send.options import ServerOptions
from loadgen.show.options import ReportOptions, WatchOptions
from loadgen.twin.commands.fidelity import FidelityOptions
from loadgen.twin.commands.fleet import FleetCommand
from loadgen.twin.commands.laboratory import LaboratoryOptions
from loadgen.twin.commands.overload import OverloadOptions
from loadgen.twin.commands.planner import GridOptions, PlanOptions
from loadgen.twin.commands.prefix import PrefixOptions
from loadgen.twin.commands.promises import PromisesOptions
from loadgen.twin.commands.simulate import RoutingOptions, SimulateOptions
from loadgen.twin.options import DeploymentOptions
from loadgen.twin.paper.reproduce import ReproduceOptions
from loadgen.workload.options import PaceOptions, WorkloadOptions

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

_SERVER = "server"
_WORKLOAD = (
    "workload (lengths: 128, 64:512, lognormal:MEDIAN:SIGMA[:LO:HI], zipf:, stair:)"
)
_PACE = "pace (--max-concurrency without a rate is a closed loop)"
_JUDGEMENT = "judgement"
_OUTPUT = "output"
# of `vllm bench serve`: what they ask for is always done here, or has no meaning
_IGNORED_FLAGS = (
    "--save-result",
    "--save-detailed",
    "--disable-tqdm",
    "--self-timed",
    "--no-oversample",
)
_IGNORED_VALUES = ("--percentile-metrics", "--result-filename")


def parser() -> argparse.ArgumentParser:
    """All commands."""
    top = argparse.ArgumentParser(
        prog="medha-loadgen",
        description=(
            "Loads an OpenAI-compatible server with short and long requests and measures what they "
            "get."
        ),
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_real_commands(commands)
    _add_simulated_commands(commands)
    return top


def _add_real_commands(commands: Commands) -> None:
    """Those that send requests, or look at what was sent."""
    run = _command(
        commands, "run", "send one load and write a results directory", EXIT_CODES
    )
    _add_run_flags(run)
    capacity = _command(
        commands,
        "capacity",
        "find the highest rate at which objectives hold",
        EXIT_CODES,
    )
    _add_run_flags(capacity)
    _add_group(capacity, "search", SearchOptions)
    compare = _command(commands, "compare", "put results directories side by side")
    compare.add_argument("directories", nargs="+", metavar="DIR")
    compare.add_argument(
        "--result-dir", help="also write compare.md, compare.html and compare.png there"
    )
    selftest = _command(
        commands,
        "selftest",
        "how much load this machine can generate, and how truly it measures",
    )
    add_flags(selftest, SelfTestOptions)
    experiment = _command(
        commands,
        "experiment",
        "the paper's experiments on this machine, with real servers",
    )
    experiment.add_argument(
        "kind",
        choices=tuple(KINDS),
        help="convoy: policies; chunks: fixed chunk sizes and budgets; overload: a flood; "
        "fairness: two tenants, of whom one sends --loads times its share",
    )
    add_flags(experiment, ExperimentOptions)


def _add_simulated_commands(commands: Commands) -> None:
    """Those of the twin."""
    _add_simulate(commands)
    reproduce = _command(
        commands,
        "reproduce",
        "the paper's figures in simulation: theirs, ours, the ratio",
    )
    add_flags(reproduce, ReproduceOptions)
    _add_prefix(commands)
    _add_plan(commands)
    _add_fidelity(commands)
    laboratory = _command(
        commands, "laboratory", "compare scheduling policies on traces, in simulation"
    )
    add_flags(laboratory, LaboratoryOptions)
    promises = _command(
        commands,
        "promises",
        "whether announced times to first token come true, in simulation",
    )
    add_flags(promises, PromisesOptions)
    overload = _command(
        commands, "overload", "floods with and without admission, in simulation"
    )
    add_flags(overload, OverloadOptions)
    fleet = _command(
        commands,
        "fleet",
        "compare routers between grids, or autoscale over a day, in simulation",
    )
    add_flags(fleet, FleetCommand)
    _add_group(fleet, "deployment of one grid", DeploymentOptions)


def _add_simulate(commands: Commands) -> None:
    simulate = _command(
        commands,
        "simulate",
        "run a workload against a simulated deployment of this server",
    )
    _add_group(simulate, "deployment", DeploymentOptions)
    _add_group(simulate, "fleet", RoutingOptions)
    _add_load_flags(simulate)
    _add_group(simulate, _OUTPUT, ReportOptions)


def _add_prefix(commands: Commands) -> None:
    prefix = _command(
        commands,
        "prefix",
        "what the prefix cache saves: a workload with it and without, simulated",
    )
    add_flags(prefix, PrefixOptions)
    _add_group(prefix, "deployment", DeploymentOptions)
    _add_group(prefix, _WORKLOAD, WorkloadOptions)
    _add_group(prefix, _PACE, PaceOptions)


def _add_plan(commands: Commands) -> None:
    plan = _command(
        commands, "plan", "find the cheapest deployment that meets objectives"
    )
    search = _add_group(plan, "search", GridOptions)
    search.add_argument(
        "--trace",
        dest="dataset_path",
        metavar="FILE",
        help="the same as --dataset-path",
    )
    _add_load_flags(plan)


def _add_fidelity(commands: Commands) -> None:
    fidelity = _command(
        commands, "fidelity", "replay a recorded real run in the twin and compare"
    )
    fidelity.add_argument(
        "directory",
        metavar="DIR",
        help="results of a real `medha-loadgen run` against this server",
    )
    add_flags(fidelity, FidelityOptions)


def _command(
    commands: Commands, name: str, text: str, epilog: str = ""
) -> argparse.ArgumentParser:
    """What is not given is absent, so that the Structs' defaults hold."""
    return commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )


def _add_group(
    command: argparse.ArgumentParser, title: str, *kinds: type[msgspec.Struct]
) -> argparse._ArgumentGroup:
    group = command.add_argument_group(title)
    for kind in kinds:
        add_flags(group, kind)
    return group


def _add_run_flags(command: argparse.ArgumentParser) -> None:
    server = _add_group(command, _SERVER, ServerOptions)
    server.add_argument(
        "--backend", choices=("openai", "vllm", "openai-chat"), help=argparse.SUPPRESS
    )
    _add_load_flags(command)
    _add_group(command, _OUTPUT, ReportOptions, WatchOptions)


def _add_load_flags(command: argparse.ArgumentParser) -> None:
    """What a real and a simulated load have in common."""
    _add_group(command, _WORKLOAD, WorkloadOptions)
    pace = _add_group(command, _PACE, PaceOptions)
    for flag in _IGNORED_FLAGS:
        pace.add_argument(flag, action="store_true", help=argparse.SUPPRESS)
    for flag in _IGNORED_VALUES:
        pace.add_argument(flag, help=argparse.SUPPRESS)
    _add_group(command, _JUDGEMENT, JudgementOptions)


def run_options(arguments: argparse.Namespace) -> RunOptions:
    """Of `run` and `capacity`; raises LoadgenError."""
    server = fill(arguments, ServerOptions)
    if getattr(arguments, "backend", None) == "openai-chat":  # vLLM's flag
        server = msgspec.structs.replace(server, endpoint="/v1/chat/completions")
    return RunOptions(
        server=server,
        workload=fill(arguments, WorkloadOptions),
        pace=fill(arguments, PaceOptions),
        judgement=fill(arguments, JudgementOptions),
        report=fill(arguments, ReportOptions),
        watch=fill(arguments, WatchOptions),
    )


def simulate_options(arguments: argparse.Namespace) -> SimulateOptions:
    """Raises LoadgenError."""
    return SimulateOptions(
        deployment=fill(arguments, DeploymentOptions),
        routing=fill(arguments, RoutingOptions),
        workload=fill(arguments, WorkloadOptions),
        pace=fill(arguments, PaceOptions),
        judgement=fill(arguments, JudgementOptions),
        report=fill(arguments, ReportOptions),
    )


def plan_options(arguments: argparse.Namespace) -> PlanOptions:
    """Raises LoadgenError."""
    return PlanOptions(
        grids=fill(arguments, GridOptions),
        workload=fill(arguments, WorkloadOptions),
        pace=fill(arguments, PaceOptions),
        judgement=fill(arguments, JudgementOptions),
    )
