"""The twin's verbs: simulate, reproduce, plan, fidelity, laboratory. Everything heavy is imported
when it is used."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from loadgen.errors import LoadgenError

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_to(commands: Commands) -> None:
    """Add the parsers of the verbs."""
    from loadgen import cli

    simulate = _command(
        commands, "simulate", "run a workload against a simulated deployment of this server"
    )
    _deployment_flags(simulate)
    for add in (cli._workload_flags, cli._pace_flags, cli._judgement_flags):
        add(simulate)
    _output_flags(simulate)
    reproduce = _command(
        commands, "reproduce", "the paper's figures in simulation: theirs, ours, the ratio"
    )
    reproduce.add_argument("--only", nargs="+", metavar="ROW", help="some experiments only")
    reproduce.add_argument("--quick", action="store_true", help="smaller samples (a minute or two)")
    reproduce.add_argument("--result-dir", help="also write reproduce.json and the figures there")
    plan = _command(commands, "plan", "find the cheapest deployment that meets objectives")
    _plan_flags(plan)
    for add in (cli._workload_flags, cli._pace_flags, cli._judgement_flags):
        add(plan)
    fidelity = _command(commands, "fidelity", "replay a recorded real run in the twin and compare")
    _fidelity_flags(fidelity)
    laboratory = _command(
        commands, "laboratory", "compare scheduling policies on traces, in simulation"
    )
    laboratory.add_argument("--quick", action="store_true", help="smaller samples")
    laboratory.add_argument("--policies", nargs="+", metavar="NAME", help="(all)")
    laboratory.add_argument(
        "--loads", nargs="+", type=float, metavar="SHARE", help="of the capacity (0.5 0.75 0.9)"
    )
    laboratory.add_argument(
        "--scenarios", nargs="+", metavar="NAME", help="(convoy mooncake azure)"
    )
    laboratory.add_argument("--result-dir", help="also write laboratory.json there")


def _command(commands: Commands, name: str, text: str) -> argparse.ArgumentParser:
    about: dict[str, Any] = {"help": text, "description": f"{text[0].upper()}{text[1:]}."}
    return commands.add_parser(
        name, argument_default=argparse.SUPPRESS, allow_abbrev=False, **about
    )


def _deployment_flags(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("deployment")
    group.add_argument(
        "--model", help="llama-3-8b, llama-3-70b, smollm2-135m or a Hugging Face config.json"
    )
    group.add_argument("--gpu", help="h100, h200, a100 or cpu-2core (h100)")
    group.add_argument("--tp", type=int, help="devices that share a stage (1)")
    group.add_argument("--spp", type=int, help="pipeline stages (1)")
    group.add_argument("--kvp", type=int, help="KV groups (1)")
    group.add_argument("--replicas", type=int, help="copies of all that (1)")
    group.add_argument(
        "--max-tokens-per-kvp-group", type=int, help="(a kvp-th of the longest request)"
    )
    group.add_argument("--tpot-ms", type=float, help="the server's objective between tokens (50)")
    group.add_argument("--policy", help="scheduling policy (lars)")
    group.add_argument(
        "--scheduler",
        type=_json,
        metavar="JSON",
        help="more of serve_config.yaml's scheduler section",
    )
    group.add_argument(
        "--profile", metavar="FILE|auto", help="a server's calibration instead of the cost model"
    )
    group.add_argument("--noise", type=float, help="relative spread of batch times (0)")


def _output_flags(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("output")
    group.add_argument("--result-dir", help="new directory for the results (results/TIME-LABEL)")
    group.add_argument("--label", help="name of the run in tables and figures")


def _plan_flags(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("search")
    group.add_argument("--model", help="as for simulate (llama-3-8b)")
    group.add_argument("--gpu", help="as for simulate (h100)")
    group.add_argument("--max-gpus", type=int, help="largest deployment to try (64)")
    group.add_argument("--tp", nargs="+", type=int, metavar="N", help="values to try (1 2 4 8)")
    group.add_argument("--spp", nargs="+", type=int, metavar="N", help="(1 2 4 8 16)")
    group.add_argument("--kvp", nargs="+", type=int, metavar="N", help="(1 2 4)")
    group.add_argument("--policy", help="scheduling policy (lars)")
    group.add_argument("--sample", type=int, help="requests to simulate a deployment with (400)")
    group.add_argument(
        "--trace", dest="dataset_path", metavar="FILE", help="the same as --dataset-path"
    )
    group.add_argument("--result-dir", help="also write plan.json and serve_config.yaml there")


def _fidelity_flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "directory", metavar="DIR", help="results of a real `medha-loadgen run` against this server"
    )
    command.add_argument(
        "--serve-config", metavar="FILE", help="the server's serve_config.yaml (its defaults)"
    )
    command.add_argument("--profile", metavar="FILE|auto", help="the server's calibration (auto)")
    command.add_argument("--model", help="for sizes of the KV cache (smollm2-135m)")
    command.add_argument("--gpu", help="likewise (cpu-2core)")
    command.add_argument(
        "--raw", action="store_true", help="no calibration on the record's idle measurements"
    )
    command.add_argument(
        "--metrics",
        nargs=2,
        metavar=("BEFORE", "AFTER"),
        help="the server's /metrics, saved before and after the run",
    )
    command.add_argument(
        "--result-dir", help="also write the simulated run and fidelity.json there"
    )


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return value


def _simulate(arguments: argparse.Namespace) -> int:
    from loadgen import cli
    from loadgen.tables import all_and_classes, as_text, class_table
    from loadgen.twin.options import TwinOptions
    from loadgen.twin.simulate import simulate

    options, twin = cli._struct(arguments, _options()), cli._struct(arguments, TwinOptions)
    directory = directory_of(options.result_dir, options.label or twin.policy)
    result = simulate(options, twin, directory, _say)
    print(as_text(class_table(all_and_classes(result))))
    for message, count in result["errors"].items():
        print(f"{count} x {message}")
    print(f"\nresults: {directory / 'report.html'}")
    return 0


def _options() -> Any:
    from loadgen.options import Options

    return Options


def _reproduce(arguments: argparse.Namespace) -> int:
    from loadgen.twin.reproduce import reproduce

    target = getattr(arguments, "result_dir", None)
    only = getattr(arguments, "only", None)
    return reproduce(
        only, getattr(arguments, "quick", False), None if target is None else Path(target), _say
    )


def _plan(arguments: argparse.Namespace) -> int:
    from loadgen import cli
    from loadgen.twin.planner import Wanted, plan

    return plan(cli._struct(arguments, _options()), cli._struct(arguments, Wanted), _say)


def _fidelity(arguments: argparse.Namespace) -> int:
    from loadgen import cli
    from loadgen.twin.fidelity import Replay, fidelity

    return fidelity(cli._struct(arguments, Replay), _say)


def _laboratory(arguments: argparse.Namespace) -> int:
    from loadgen import cli
    from loadgen.twin.laboratory import Trials, laboratory

    return laboratory(cli._struct(arguments, Trials), _say)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "simulate": _simulate,
    "reproduce": _reproduce,
    "plan": _plan,
    "fidelity": _fidelity,
    "laboratory": _laboratory,
}


def directory_of(given: str | None, what: str) -> Path:
    """--result-dir, or a new name below results/; raises LoadgenError if it holds something."""
    if given is None:
        name = re.sub(r"[^\w.+-]+", "-", f"simulated-{what}")
        return Path("results") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{name}"
    directory = Path(given)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise LoadgenError(f"{directory} exists already; choose another --result-dir")
    return directory


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
