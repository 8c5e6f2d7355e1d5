"""`medha-loadgen experiment convoy|chunks|overload|fairness`: the paper's experiments, a flood, and
two tenants, on the machine at hand, with real servers.

Every variant gets the same arrivals and the same prompts. Cells that are done are not done again,
so an experiment that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import msgspec

from loadgen.errors import EXIT_INTERRUPTED, LoadgenError
from loadgen.experiment.cells import KINDS, Cell, rounds
from loadgen.experiment.neighbours import (
    GREEDY,
    MODEST,
    MODEST_LOAD,
    as_tenant,
    headers_of,
    paced,
    side_by_side,
    with_keys,
)
from loadgen.experiment.options import Conditions, ExperimentOptions, with_defaults
from loadgen.experiment.serving import metrics_of, read_config, serving, varied
from loadgen.experiment.simulated import simulated_fairness
from loadgen.experiment.table import Results, draw_frontier, table
from loadgen.options import RunOptions
from loadgen.run import run
from loadgen.show.compare import read_runs, write_comparison
from loadgen.show.output import Say
from loadgen.show.tables import Table, as_markdown
from loadgen.workload.mixes import Mix

_GREEDY_SEED = 7919


async def experiment(asked: ExperimentOptions, say: Say) -> tuple[Table, Path]:
    """Measure what is not measured yet; returns the table and the file it was written to."""
    folder = Path(asked.result_dir)
    variants = asked.chosen()
    config = read_config(Path(asked.serve_config))
    if asked.kind == "fairness":
        config = with_keys(config, folder)
    first = next(iter(variants))
    capacities = await _references(asked, varied(config, variants[first]), folder, say)
    results: dict[str, list[dict[str, Any]]] = {}
    for variant, cells in rounds(
        list(variants), asked.long_fractions, asked.loads, asked.repeats
    ):
        missing = [cell for cell in cells if not _done(folder / "cells" / cell.name)]
        if missing:
            say(f"{variant}: {len(missing)} cells")
            server = serving(
                varied(config, variants[variant]), folder / "servers" / variant
            )
            async with server as url:
                for cell in missing:
                    await _measure(
                        asked, cell, url, capacities[cell.long_fraction], folder, say
                    )
        for cell in cells:
            row = f"{cell.variant}, {100 * cell.long_fraction:g}% long, load {cell.load:g}"
            results.setdefault(row, []).append(_result(folder / "cells" / cell.name))
            if asked.kind == "fairness":
                greedy = _result(_greedy_of(folder, cell))
                results.setdefault(f"{row}, the greedy one", []).append(greedy)
    return _write(asked, results, folder)


async def _references(
    asked: ExperimentOptions, config: dict[str, Any], folder: Path, say: Say
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
    missing = [fraction for fraction, place in places.items() if not _done(place)]
    if missing:
        say("measuring the idle server and the capacity")
        async with serving(config, folder / "servers" / "reference") as url:
            for fraction in missing:
                place = places[fraction]
                isolated = (
                    "measure" if fraction == fractions[0] else str(places[fractions[0]])
                )
                conditions = Conditions(isolated_ttft=isolated, max_concurrency=24)
                options = asked.options(url, place, fraction, conditions)
                if MODEST in (known := headers_of(folder)):
                    options = as_tenant(options, known[MODEST], place)
                await _run(options, place, say)
    if asked.capacity is not None:
        return dict.fromkeys(asked.long_fractions, asked.capacity)
    capacities = {}
    for fraction, place in places.items():
        capacity = float(_result(place)["request_throughput"])
        say(f"capacity with {100 * fraction:g}% long: {capacity:.3g} requests/s")
        capacities[fraction] = capacity
    return capacities


def _reference_of(fraction: float) -> str:
    return f"reference-long{100 * fraction:g}"


async def _measure(
    asked: ExperimentOptions,
    cell: Cell,
    url: str,
    capacity: float,
    folder: Path,
    say: Say,
) -> None:
    directory = folder / "cells" / cell.name
    conditions = Conditions(
        isolated_ttft=str(folder / _reference_of(max(asked.long_fractions))),
        request_rate=capacity * cell.load,
        policy=KINDS[asked.kind][cell.variant]["policy"],
    )
    known = headers_of(folder)
    headers = {"authorization": known[MODEST]} if known else {}
    before = await metrics_of(url, headers)
    options = asked.options(url, directory, cell.long_fraction, conditions)
    if known:
        await _run_both(asked, cell, options, capacity / 2, folder, say)
    else:
        await _run(options, directory, say)
    (directory / "server_before.txt").write_text(before)  # these three for `fidelity`
    (directory / "server_after.txt").write_text(await metrics_of(url, headers))
    shutil.copy(folder / "servers" / cell.variant / "serve_config.json", directory)


async def _run_both(
    asked: ExperimentOptions,
    cell: Cell,
    options: RunOptions,
    share: float,
    folder: Path,
    say: Say,
) -> None:
    """A modest tenant beside one that sends the load's multiple of its `share`, in requests/s."""
    known = headers_of(folder)
    rates = (MODEST_LOAD * share, cell.load * share)
    count = int(asked.num_prompts * rates[1] / rates[0]) + 1
    modest = paced(options, rates[0], asked.num_prompts, asked.seed)
    greedy = paced(options, rates[1], count, asked.seed + _GREEDY_SEED)
    place = folder / "cells" / cell.name
    statuses = await side_by_side(
        as_tenant(modest, known[MODEST], place),
        as_tenant(greedy, known[GREEDY], _greedy_of(folder, cell)),
        say,
    )
    if any(statuses):
        shutil.rmtree(place, ignore_errors=True)
        raise LoadgenError(
            f"{cell.name} was cut short; the same command goes on", max(statuses)
        )


def _greedy_of(folder: Path, cell: Cell) -> Path:
    return folder / "cells" / f"{cell.name}-{GREEDY}"


async def _run(options: RunOptions, directory: Path, say: Say) -> None:
    shutil.rmtree(directory, ignore_errors=True)  # of an attempt that was cut short
    result, health, status = await run(options, directory, say)
    failed = "".join(
        f", {count} x {message}" for message, count in result["errors"].items()
    )
    say(
        f"  {options.report.label}: {result['completed']} answered{failed}; load generator "
        f"{health.verdict}"
    )
    if status == EXIT_INTERRUPTED:
        shutil.rmtree(directory)
        raise LoadgenError("interrupted; the same command goes on from here", status)
    if status:
        raise LoadgenError(
            f"{options.report.label}: no request was answered, see {directory}", status
        )


def _done(directory: Path) -> bool:
    return (directory / "result.json").exists()


def _result(directory: Path) -> dict[str, Any]:
    return msgspec.json.decode(
        (directory / "result.json").read_bytes(), type=dict[str, Any]
    )


def _write(
    asked: ExperimentOptions, results: Results, folder: Path
) -> tuple[Table, Path]:
    """experiment.md, and the first repeat of all cells compared (or the frontier) beside it."""
    rows = table(results)
    target = folder / "experiment.md"
    target.write_text(f"{as_markdown(rows)}\n")
    if asked.kind == "chunks":
        draw_frontier(results, folder / "frontier.png")
    cells: list[Cell] = []
    for _, of_variant in rounds(
        list(asked.chosen()), asked.long_fractions, asked.loads, 1
    ):
        cells += of_variant
    if len(cells) > 1:
        shutil.rmtree(folder / "comparison", ignore_errors=True)
        write_comparison(
            read_runs([folder / "cells" / cell.name for cell in cells]),
            folder / "comparison",
        )
    return rows, target


def run_experiment(asked: ExperimentOptions, say: Say) -> tuple[Table, Path]:
    """The command, from a thread without an event loop."""
    asked = with_defaults(asked)
    if not asked.simulated:
        return asyncio.run(experiment(asked, say))
    if asked.kind != "fairness":
        raise LoadgenError(
            f"--simulated: {asked.kind} has commands of its own in the twin"
        )
    mix = Mix(
        input_len=asked.input_len,
        output_len=asked.output_len,
        long_fraction=asked.long_fractions[0],
        long_input_len=asked.long_input_len,
    )
    seeds = range(asked.seed, asked.seed + asked.repeats)
    variants = asked.chosen()
    rows = simulated_fairness(
        mix, variants, asked.loads, MODEST_LOAD, asked.num_prompts, seeds, say
    )
    target = Path(asked.result_dir) / "experiment.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(f"{as_markdown(rows)}\n")
    return rows, target
