"""`python -m tests.conformance [TOOL ...]`: real tools against a real server.

Each tool is installed in an environment of its own, once, and runs its script of
tests/conformance/scripts. The table of docs/conformance.md gets a row for each. Exit status 0 if
nothing failed. `make conformance` runs all.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from medha_actors.files.folders import cache_folder
from tests.conformance import outcomes, recording, tools
from tests.conformance.runs import Served, run, served_at
from tests.conformance.scripted import scripted_server
from tests.conformance.scripted import serving as serving_scripted
from tests.system.serve_process import serving, shipped_args

MOST_TOKENS: Final = 64  # of a scripted answer
PAGE: Final = Path(__file__).parents[2] / "docs" / "conformance.md"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.conformance", description=__doc__)
    parser.add_argument(
        "tool", nargs="*", help=f"of {', '.join(tools.NAMES)}; none: all"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="of a running server, instead of starting one")
    where.add_argument(
        "--scripted",
        action="store_true",
        help="against a scripted engine in this process",
    )
    parser.add_argument(
        "--environments",
        type=Path,
        default=cache_folder() / "conformance",
        help="the folder where the tools live",
    )
    parser.add_argument(
        "--anew", action="store_true", help="install the newest packages again"
    )
    parser.add_argument("--cases", type=int, help="of schemathesis, for each route")
    parser.add_argument(
        "--page", type=Path, default=PAGE, help="whose table gets the results"
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="keep what is sent for the tests; with --scripted",
    )
    options = parser.parse_args(arguments)
    unknown = set(options.tool) - set(tools.NAMES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if options.record and not options.scripted:
        parser.error("--record needs --scripted")
    return options


@contextlib.contextmanager
def scripted() -> Iterator[tuple[Served, recording.Recorder]]:
    recorder = recording.Recorder(scripted_server(MOST_TOKENS).asgi())
    with serving_scripted(recorder) as url:
        server = served_at(url, "scripted")
        recorder.take()
        yield server, recorder


@contextlib.contextmanager
def server(
    options: argparse.Namespace,
) -> Iterator[tuple[Served, recording.Recorder | None]]:
    """What is asked for, and what records there."""
    if options.url:
        yield served_at(options.url.rstrip("/"), "real"), None
    elif options.scripted:
        with scripted() as served:
            yield served
    else:
        with (
            tempfile.TemporaryDirectory(prefix="medha-conformance-") as folder,
            serving(Path(folder), **shipped_args()) as (url, _),
        ):
            yield served_at(url, "real"), None


def keep(name: str, requests: list[recording.Recorded]) -> None:
    """For the tests, which send cases of schemathesis themselves."""
    if requests and name != "schemathesis":
        recording.save(name, requests)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):  # a server must not be left behind
        signal.signal(number, signal.default_int_handler)
    if options.cases:
        os.environ["MEDHA_CASES"] = str(options.cases)
    environments: Path = options.environments.absolute()
    done: list[outcomes.Outcome] = []
    with server(options) as (served, recorder):
        for tool in tools.chosen(options.tool):
            print(f"{tool.name} ...", flush=True)
            done.append(run(tool, environments, served, options.anew))
            print(f"{tool.name} {done[-1].version}: {done[-1].result}", flush=True)
            outcomes.write(options.page, done)
            if options.record and recorder is not None:
                keep(tool.name, recorder.take())
    bad = [outcome.tool for outcome in done if not outcome.is_good]
    print(f"\nfailed: {', '.join(bad)}" if bad else "\nall is well")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
