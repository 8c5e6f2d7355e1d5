"""The check of everything that only a GPU can show: `python -m medha_actors.bench gpu`.

Its parts run one after another, each in a process of its own with a limit of its own: after a
sticky CUDA error nothing else in that process works, and a part that hangs takes only its own time.
The table comes last; the same goes to gpu-CARD-DATE.json and .md. Exit code 2: there is no GPU;
1: a target was missed or a part did not come to its end.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medha_actors.bench import gpu_report
from medha_actors.bench.gpu_findings import ROWS, read_rows
from medha_actors.bench.gpu_report import Outcome
from medha_actors.bench.gpu_rows import rows_of_tables

_TAIL = 4000  # characters of a part's output that are shown if it fails
_OUTPUT = "output.txt"
_LEAST_S = 10.0  # with less time no part is started


class Part(NamedTuple):
    """`module` has `run(findings)`; its process is ended after `limit_s`."""

    name: str
    module: str
    limit_s: float


PARTS = (
    Part("card", "medha_actors.bench.gpu_card", 20),
    Part("attention", "medha_actors.bench.gpu_attention", 50),
    Part("step", "medha_actors.bench.gpu_step", 60),
    Part("model", "medha_actors.bench.gpu_model", 60),
    Part("sampler", "medha_actors.bench.gpu_sampler", 35),
    Part("links", "medha_actors.bench.gpu_links", 30),
    Part("ray", "medha_actors.bench.gpu_ray", 90),
    Part("tests", "medha_actors.bench.gpu_tests", 120),
    Part("sanitizer", "medha_actors.bench.gpu_sanitizer", 55),
    Part("convoy", "medha_actors.bench.gpu_convoy", 80),
)


def main(arguments: Sequence[str]) -> None:
    """Parse, find the card, run the parts, report."""
    given = _parse(arguments)
    card = gpu_report.card()
    if card is None:
        print("no CUDA device: nothing of this can run here", file=sys.stderr)
        raise SystemExit(2)
    chosen = [part for part in PARTS if not given.only or part.name in given.only]
    with tempfile.TemporaryDirectory(prefix="medha-gpu-") as scratch:
        outcomes = run_parts(chosen, given.budget_s, Path(scratch), given.result_dir)
    gpu_report.write(card, outcomes, given.result_dir)
    print(gpu_report.table(card, outcomes))
    print(gpu_report.summary(outcomes), flush=True)
    if not all(outcome.good for outcome in outcomes):
        raise SystemExit(1)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(
        prog="medha_actors.bench gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="PART",
        choices=names,
        help=f"of {', '.join(names)}",
    )
    parser.add_argument("--result-dir", type=Path, default=Path("docs/results"))
    parser.add_argument(
        "--budget-s",
        type=float,
        default=540.0,
        help="seconds for all parts (%(default)s)",
    )
    return parser.parse_args(arguments)


def run_parts(
    parts: Sequence[Part], budget_s: float, scratch: Path, result_dir: Path
) -> list[Outcome]:
    """Run them in order while there is time; their output goes to `result_dir`/log.txt, their own
    files to `result_dir`/files."""
    result_dir.mkdir(parents=True, exist_ok=True)
    ends_at = time.monotonic() + budget_s
    outcomes = []
    for part in parts:
        left_s = ends_at - time.monotonic()
        if importlib.util.find_spec(part.module) is None:
            outcomes.append(Outcome(part.name, "not there", 0.0, []))
        elif left_s < _LEAST_S:
            outcomes.append(Outcome(part.name, "no time left", 0.0, []))
        else:
            folder = scratch / part.name
            folder.mkdir()
            outcomes.append(
                _run(part, min(part.limit_s, left_s), folder, result_dir / "log.txt")
            )
            _keep_files(folder, result_dir / "files")
    return outcomes


def _run(part: Part, limit_s: float, folder: Path, log: Path) -> Outcome:
    print(f"{part.name}: at most {limit_s:.0f} s", flush=True)
    command = [sys.executable, "-m", "medha_actors.bench.gpu_part"]
    command += [part.module, str(folder), f"{limit_s:.1f}"]
    output = folder / _OUTPUT
    began = time.monotonic()
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=_environment(),
            start_new_session=True,
        )  # fmt: skip
        try:
            how = _ending(process.wait(timeout=limit_s))
        except subprocess.TimeoutExpired:
            how = "ended at its limit"
        _end(process)
    seconds = time.monotonic() - began
    said = output.read_text(errors="replace")
    with log.open("a") as file:
        file.write(f"\n=== {part.name}: {how}, {seconds:.1f} s\n{said}")
    if how != "done":
        print(said[-_TAIL:], flush=True)
        how = f"{how}: {_reason(said)}"
    print(f"{part.name}: {how}, {seconds:.1f} s", flush=True)
    return Outcome(part.name, how, seconds, read_rows(folder) + rows_of_tables(folder))


def _keep_files(folder: Path, kept: Path) -> None:
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.name not in (ROWS, _OUTPUT):
            kept.mkdir(exist_ok=True)
            shutil.copy(file, kept / f"{folder.name}-{file.name}")


def _environment() -> dict[str, str]:
    here = str(Path.cwd())
    found = os.environ.get("PYTHONPATH")
    paths = here if not found else f"{here}{os.pathsep}{found}"
    return os.environ | {"PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}


def _ending(code: int) -> str:
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return "done" if code == 0 else "failed"


def _end(process: subprocess.Popen[Any]) -> None:
    """End the part and whatever it has started in its session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _reason(said: str) -> str:
    """The last line that names an error, else the last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    named = [
        line for line in lines if re.match(r"[\w.]*(Error|Exception|Exit)\b", line)
    ]
    return (named or lines or ["it said nothing"])[-1][:200]
