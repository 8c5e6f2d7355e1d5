"""`medha-loadgen laboratory`: scheduling policies side by side, on the convoy mix and on recorded
traces, over several seeds.

Every policy sees the same arrivals at shares of the capacity. With --result-dir every cell is kept
as soon as it is played, and what is there already is not played again: a long laboratory may be
played in parts.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated

import msgspec

from loadgen.errors import LoadgenError
from loadgen.flags import flag
from loadgen.show.output import Say
from loadgen.show.tables import as_text
from loadgen.twin.cells import POLICIES, Cell, Finding, Shelf
from loadgen.twin.pairs import as_csv, page, settings_of, table_of
from loadgen.twin.scenarios import ASKED, SCENARIOS

FULL = 600  # requests
QUICK = 120


class LaboratoryOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command is given."""

    quick: Annotated[bool, flag("smaller samples")] = False
    policies: Annotated[tuple[str, ...], flag(shown="all", metavar="NAME")] = tuple(
        POLICIES
    )
    loads: Annotated[
        tuple[float, ...], flag("of the capacity", metavar="SHARE", gt=0, le=10)
    ] = (
        0.5,
        0.75,
        0.9,
        1.1,
        2.0,
    )
    scenarios: Annotated[tuple[str, ...], flag(metavar="NAME")] = SCENARIOS
    asking: Annotated[
        tuple[str, ...],
        flag("clients' objectives: default, tight, lax, mixed", metavar="NAME"),
    ] = ("default",)
    noise: Annotated[
        tuple[float, ...],
        flag("relative spread of a batch's time", metavar="SHARE", ge=0, le=1),
    ] = (0.03,)
    seeds: Annotated[
        int, flag("of arrivals and noise, windows of traces", ge=1, le=1000)
    ] = 5
    base: Annotated[str, flag("what the others are compared with, paired")] = "lars"
    traces: Annotated[
        str | None,
        flag("the whole Mooncake and Azure traces", shown="the samples", metavar="DIR"),
    ] = None
    workers: Annotated[int, flag("processes", ge=1, le=256)] = 1
    limit_s: Annotated[
        float | None, flag("begin no cell after so long; run again to go on", gt=0)
    ] = None
    result_dir: Annotated[
        str | None, flag("keep cells there, and write laboratory.json, .md and .csv")
    ] = None


def laboratory(asked: LaboratoryOptions, say: Say) -> int:
    """The whole command."""
    for kind, given, known in (
        ("policies", asked.policies, POLICIES),
        ("scenarios", asked.scenarios, SCENARIOS),
        ("asking", asked.asking, ASKED),
    ):
        if unknown := set(given) - set(known):
            raise LoadgenError(
                f"--{kind} {', '.join(sorted(unknown))}: known are {', '.join(known)}"
            )
    directory = None if asked.result_dir is None else Path(asked.result_dir)
    shelf = Shelf(None if directory is None else directory / "cells")
    cells = list(cells_of(asked))
    found = {cell: kept for cell in cells if (kept := shelf.finding(cell)) is not None}
    missing = [cell for cell in cells if cell not in found]
    if found:
        say(f"{len(found)} of {len(cells)} cells were played before")
    for cell, new in _played(shelf, missing, asked):
        found[cell] = new
    findings = [found[cell] for cell in sorted(found, key=_place_in(asked))]
    for setting in settings_of(findings):
        scenario, load, asking, noise = setting
        table = as_text(table_of(findings, setting, asked.base))
        print(
            f"{scenario}, load {load:g}, {asking} objectives, noise {noise:g}\n{table}\n"
        )
    if directory is not None:
        (directory / "laboratory.json").write_bytes(msgspec.json.encode(findings))
        (directory / "laboratory.md").write_text(page(findings, asked.base))
        (directory / "laboratory.csv").write_text(as_csv(findings, asked.base))
    if len(findings) < len(cells):
        say(f"{len(cells) - len(findings)} cells are left: run the same command again")
    return 0


def cells_of(asked: LaboratoryOptions) -> Iterator[Cell]:
    """All cells; one seed after the other, so that what is cut short is whole for fewer seeds."""
    seeds = range(1 if asked.quick else asked.seeds)
    for seed, scenario, load, asking, noise, policy in itertools.product(
        seeds, asked.scenarios, asked.loads, asked.asking, asked.noise, asked.policies
    ):
        yield msgspec.convert(
            {
                "scenario": scenario,
                "load": load,
                "asking": asking,
                "noise": noise,
                "seed": seed,
                "policy": policy,
                "count": QUICK if asked.quick else FULL,
                "traces": asked.traces,
            },
            Cell,
        )


def _place_in(asked: LaboratoryOptions) -> Callable[[Cell], tuple[float, ...]]:
    """Where a cell stands in the tables: as was asked, the seeds of a policy side by side."""

    def place(cell: Cell) -> tuple[float, ...]:
        return (
            asked.scenarios.index(cell.scenario),
            cell.load,
            asked.asking.index(cell.asking),
            cell.noise,
            asked.policies.index(cell.policy),
            cell.seed,
        )

    return place


def _played(
    shelf: Shelf, missing: Sequence[Cell], asked: LaboratoryOptions
) -> Iterator[tuple[Cell, Finding]]:
    """Play what is missing, in groups of one scenario and seed, within the time."""
    stop_at = math.inf if asked.limit_s is None else time.monotonic() + asked.limit_s
    groups = [
        list(cells)
        for _, cells in itertools.groupby(
            missing, key=lambda cell: (cell.seed, cell.scenario)
        )
    ]
    if asked.workers == 1 or len(groups) < 2:
        for group in groups:
            yield from _play_group(shelf, group, stop_at)
        return
    with ProcessPoolExecutor(asked.workers) as workers:
        running = [
            workers.submit(_all_of_group, shelf, group, stop_at) for group in groups
        ]
        for one in as_completed(running):
            yield from one.result()


def _all_of_group(
    shelf: Shelf, group: Sequence[Cell], stop_at: float
) -> list[tuple[Cell, Finding]]:
    return list(_play_group(shelf, group, stop_at))


def _play_group(
    shelf: Shelf, group: Sequence[Cell], stop_at: float
) -> Iterator[tuple[Cell, Finding]]:
    for cell in group:
        if time.monotonic() >= stop_at:
            return
        yield cell, shelf.play(cell)
