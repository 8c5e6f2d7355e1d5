"""Entry point of `medha-loadgen` and `python -m loadgen`."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from loadgen import capacity as rates
from loadgen import cli
from loadgen.compare import read_runs, tables, warnings, write_comparison
from loadgen.errors import EXIT_INTERRUPTED, LoadgenError
from loadgen.experiment.command import run_experiment
from loadgen.options import Options
from loadgen.run import run
from loadgen.selftest import selftest
from loadgen.tables import all_and_classes, as_text, class_table
from loadgen.twin import commands as twin_commands


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Errors of the user's making are one line on standard
    error."""
    arguments = cli.parser().parse_args(argv)
    commands = {"run": _run, "capacity": _capacity, "compare": _compare, "selftest": _selftest}
    commands |= {"experiment": _experiment}
    commands |= twin_commands.COMMANDS
    try:
        return commands[arguments.command](arguments)
    except LoadgenError as error:
        print(f"medha-loadgen: error: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("medha-loadgen: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(arguments: argparse.Namespace) -> int:
    options = cli.options_of(arguments)
    directory = _directory(options, "run")
    result, health, status = asyncio.run(run(options, directory, _say))
    print(as_text(class_table(all_and_classes(result))))
    for message, count in result["errors"].items():
        print(f"{count} x {message}")
    print(f"\nload generator's own health: {health.verdict}\nresults: {directory / 'report.html'}")
    return status


def _capacity(arguments: argparse.Namespace) -> int:
    options = cli.options_of(arguments)
    directory = _directory(options, "capacity")
    found, status = asyncio.run(rates.capacity(options, cli.search_of(arguments), directory, _say))
    print(
        f"{as_text(rates.table_of(found))}\n\n{rates.summary(found)}\nresults: "
        f"{directory / 'report.html'}"
    )
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
    print(json.dumps(selftest(cli.load_of(arguments)), indent=2))
    return 0


def _experiment(arguments: argparse.Namespace) -> int:
    rows, file = run_experiment(cli.experiment_of(arguments), _say)
    print(f"{as_text(rows)}\n\nresults: {file}")
    return 0


def _directory(options: Options, what: str) -> Path:
    """--result-dir, or a new name below results/. No colons: some file systems refuse them."""
    if options.result_dir is not None:
        directory = Path(options.result_dir)
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise LoadgenError(f"{directory} exists already; choose another --result-dir")
        return directory
    name = re.sub(r"[^\w.+-]+", "-", options.label or options.policy or what)
    return Path("results") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{name}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
