"""`python -m tests.chaos COMMAND`: harm a real server in every way we know of, and judge it.

Exit status 0 if every goal was reached. `make chaos` runs `all`; its tables: docs/reliability.md.
"""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.chaos import campaigns, kills, poison, soak

FUZZ_REQUESTS: Final = 100_000
HOSTILE_REQUESTS: Final = 10_000
SOAK_MINUTES: Final = 30.0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results/chaos"),
        help="where the JSON goes",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("kills", help="every actor dies under load")
    add.add_argument(
        "--kill", action="append", default=[], choices=kills.NAMES, help="repeatable"
    )
    add.add_argument("--repeats", type=int, default=3)
    commands.add_parser("poison", help="one request that used to kill the pipeline")
    add = commands.add_parser("fuzz", help="random valid requests")
    add.add_argument("--requests", type=int, default=FUZZ_REQUESTS)
    add = commands.add_parser("hostile", help="requests that want too much")
    add.add_argument("--requests", type=int, default=HOSTILE_REQUESTS)
    add = commands.add_parser(
        "soak", help="mixed load and deaths, and nothing has grown after it"
    )
    add.add_argument("--minutes", type=float, default=SOAK_MINUTES)
    commands.add_parser("all", help="all of the above, in full")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):  # a server must not be left behind
        signal.signal(number, signal.default_int_handler)
    results: Path = options.results.absolute()
    commands: dict[str, Callable[[], int]] = {
        "kills": lambda: kills.run(options.kill, options.repeats, results),
        "poison": lambda: poison.run(results),
        "fuzz": lambda: campaigns.fuzz(options.requests, results),
        "hostile": lambda: campaigns.hostile(options.requests, results),
        "soak": lambda: soak.run(options.minutes, results),
        "all": lambda: everything(results),
    }
    return _status(commands[options.command])


def everything(results: Path) -> int:
    """One after the other, also when one has failed."""
    commands: tuple[tuple[str, Callable[[], int]], ...] = (
        ("kills", lambda: kills.run((), 3, results)),
        ("poison", lambda: poison.run(results)),
        ("fuzz", lambda: campaigns.fuzz(FUZZ_REQUESTS, results)),
        ("hostile", lambda: campaigns.hostile(HOSTILE_REQUESTS, results)),
        ("soak", lambda: soak.run(SOAK_MINUTES, results)),
    )
    failed: list[str] = []
    for name, command in commands:
        print(f"\n## {name}", flush=True)
        if _status(command):
            failed.append(name)
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nevery goal was reached")
    return int(bool(failed))


def _status(command: Callable[[], int]) -> int:
    """The command's exit status; 1 if the server could not even be watched."""
    try:
        return command()
    except (Exception, pytest.fail.Exception):
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    sys.exit(main())
