"""`medha-loadgen experiment convoy|chunks`: the paper's experiments on the machine at hand, with
real servers.

Every variant gets the same arrivals and the same prompts. Cells that are done are not done again,
so an experiment that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from loadgen.compare import read_runs, write_comparison
from loadgen.errors import EXIT_INTERRUPTED, LoadgenError
from loadgen.experiment.cells import KINDS, Cell, rounds
from loadgen.experiment.serving import metrics_of, read_config, serving, varied
from loadgen.experiment.table import Results, draw_frontier, table
from loadgen.options import Options
from loadgen.run import run
from loadgen.tables import Table, as_markdown

Say = Callable[[str], None]
_LONG = 4000  # prompt tokens from which a request counts as long


class Experiment(msgspec.Struct, frozen=True, kw_only=True):
    """The flags of the command."""

    kind: str = "convoy"
    serve_config: str = "serve_config.yaml"
    result_dir: str = "results/experiment"
    variants: tuple[str, ...] = ()  # empty: all of the kind
    long_fractions: tuple[float, ...] = (0.05,)
    loads: tuple[float, ...] = (0.75,)
    repeats: int = 1
    num_prompts: int = 150
    capacity: float | None = (
        None  # requests/s; None: measured first for each long fraction, in a closed loop
    )
    long_input_len: str = "6000:7500"
    input_len: str = "lognormal:100:0.8:8:512"
    output_len: str = "16:64"
    seed: int = 1

    def chosen(self) -> dict[str, dict[str, Any]]:
        """The variants; raises LoadgenError."""
        known = KINDS[self.kind]
        unknown = [name for name in self.variants if name not in known]
        if unknown:
            raise LoadgenError(f"--variants {' '.join(unknown)}: known are {', '.join(known)}")
        return {name: known[name] for name in self.variants} if self.variants else known

    def options(self, url: str, directory: Path, long_fraction: float, **more: Any) -> Options:
        """Of one run."""
        return Options(
            base_url=url,
            input_len=self.input_len,
            output_len=self.output_len,
            long_fraction=long_fraction,
            long_input_len=self.long_input_len,
            long_threshold=_LONG,
            num_prompts=self.num_prompts,
            seed=self.seed,
            ignore_eos=True,
            num_warmups=2,
            quiet=True,
            result_dir=str(directory),
            **more,
        )


async def experiment(asked: Experiment, say: Say) -> tuple[Table, Path]:
    """Measure what is not measured yet; returns the table and the file it was written to."""
    folder, variants = Path(asked.result_dir), asked.chosen()
    config = read_config(Path(asked.serve_config))
    if min(asked.loads) <= 0 or asked.repeats < 1:
        raise LoadgenError("--loads must be above 0 and --repeats at least 1")
    first = next(iter(variants))
    capacities = await _references(asked, varied(config, variants[first]), folder, say)
    found: dict[str, list[dict[str, Any]]] = {}
    for variant, cells in rounds(list(variants), asked.long_fractions, asked.loads, asked.repeats):
        missing = [cell for cell in cells if not _done(folder / "cells" / cell.name)]
        if missing:
            say(f"{variant}: {len(missing)} cells")
            async with serving(
                varied(config, variants[variant]), folder / "servers" / variant
            ) as url:
                for cell in missing:
                    await _measure(asked, cell, url, capacities[cell.long_fraction], folder, say)
        for cell in cells:
            row = f"{cell.variant}, {100 * cell.long_fraction:g}% long, load {cell.load:g}"
            found.setdefault(row, []).append(_result(folder / "cells" / cell.name))
    return _write(asked, found, folder)


async def _references(
    asked: Experiment, config: dict[str, Any], folder: Path, say: Say
) -> dict[float, float]:
    """Requests/s of the first variant in a closed loop, by long fraction: what the loads are shares
    of.

    With the most long ones its latencies when idle are measured too: what times to first token are
    normalised by.
    """
    fractions = sorted(set(asked.long_fractions), reverse=True)
    if asked.capacity is not None:
        fractions = fractions[:1]
    places = {fraction: folder / _reference_of(fraction) for fraction in fractions}
    if missing := {fraction: place for fraction, place in places.items() if not _done(place)}:
        say("measuring the idle server and the capacity")
        async with serving(config, folder / "servers" / "reference") as url:
            for fraction, place in missing.items():
                isolated = "measure" if fraction == fractions[0] else str(places[fractions[0]])
                more = {"max_concurrency": 24, "isolated_ttft": isolated, "label": place.name}
                await _run(asked.options(url, place, fraction, **more), place, say)
    if asked.capacity is not None:
        return dict.fromkeys(asked.long_fractions, asked.capacity)
    found = {
        fraction: float(_result(place)["request_throughput"]) for fraction, place in places.items()
    }
    for fraction, capacity in found.items():
        say(f"capacity with {100 * fraction:g}% long: {capacity:.3g} requests/s")
    return found


def _reference_of(fraction: float) -> str:
    return f"reference-long{100 * fraction:g}"


async def _measure(
    asked: Experiment, cell: Cell, url: str, capacity: float, folder: Path, say: Say
) -> None:
    directory = folder / "cells" / cell.name
    more = {
        "request_rate": capacity * cell.load,
        "isolated_ttft": str(folder / _reference_of(max(asked.long_fractions))),
        "label": cell.name,
        "policy": KINDS[asked.kind][cell.variant]["policy"],
    }
    before = await metrics_of(url)
    await _run(asked.options(url, directory, cell.long_fraction, **more), directory, say)
    (directory / "server_before.txt").write_text(before)  # these three for `fidelity`
    (directory / "server_after.txt").write_text(await metrics_of(url))
    shutil.copy(folder / "servers" / cell.variant / "serve_config.json", directory)


async def _run(options: Options, directory: Path, say: Say) -> None:
    shutil.rmtree(directory, ignore_errors=True)  # of an attempt that was cut short
    result, health, status = await run(options, directory, say)
    failed = "".join(f", {count} x {message}" for message, count in result["errors"].items())
    say(
        f"  {options.label}: {result['completed']} answered{failed}; load generator "
        f"{health.verdict}"
    )
    if status == EXIT_INTERRUPTED:
        shutil.rmtree(directory)
        raise LoadgenError("interrupted; the same command goes on from here", status)
    if status:
        raise LoadgenError(f"{options.label}: no request was answered, see {directory}", status)


def _done(directory: Path) -> bool:
    return (directory / "result.json").exists()


def _result(directory: Path) -> dict[str, Any]:
    return msgspec.json.decode((directory / "result.json").read_bytes(), type=dict[str, Any])


def _write(asked: Experiment, found: Results, folder: Path) -> tuple[Table, Path]:
    """experiment.md, and the first repeat of all cells compared (or the frontier) beside it."""
    rows = table(found)
    target = folder / "experiment.md"
    target.write_text(f"{as_markdown(rows)}\n")
    if asked.kind == "chunks":
        draw_frontier(found, folder / "frontier.png")
    cells = [
        cell
        for _, group in rounds(list(asked.chosen()), asked.long_fractions, asked.loads, 1)
        for cell in group
    ]
    if len(cells) > 1:
        shutil.rmtree(folder / "comparison", ignore_errors=True)
        write_comparison(
            read_runs([folder / "cells" / cell.name for cell in cells]), folder / "comparison"
        )
    return rows, target


def run_experiment(asked: Experiment, say: Say) -> tuple[Table, Path]:
    """The command, from a thread without an event loop."""
    return asyncio.run(experiment(asked, say))
