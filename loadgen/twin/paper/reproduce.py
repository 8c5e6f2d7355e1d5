"""`medha-loadgen reproduce`: the paper's table, theirs, ours and the ratio, and its figures, all
from the twin."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Annotated, Any

import msgspec

from loadgen.errors import LoadgenError
from loadgen.flags import flag
from loadgen.show import figures
from loadgen.show.output import Say, claim_directory
from loadgen.show.tables import Table, as_text
from loadgen.twin.paper import baseline, convoy, scaling
from loadgen.twin.paper.common import Row

EXPERIMENTS = {
    "convoy": convoy.convoy,
    "policies": convoy.policies,
    "capacity": convoy.rates,
    "elastic": baseline.elastic_fleets,
    "sharing": convoy.sharing,
    "pools": convoy.pools,
    "spp": scaling.spp,
    "kvp": scaling.kvp,
    "3d": scaling.grids,
    "attention": scaling.attention,
    "frontier": scaling.frontier,
    "decision": scaling.decision,
}
FULL = 300  # requests of a run
QUICK = 100


class ReproduceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command is given."""

    only: Annotated[tuple[str, ...], flag("some experiments only", metavar="ROW")] = ()
    quick: Annotated[bool, flag("smaller samples (a minute or two)")] = False
    result_dir: Annotated[
        str | None, flag("also write reproduce.json and the figures there")
    ] = None


def reproduce(options: ReproduceOptions, say: Say) -> int:
    """The whole command."""
    only = options.only
    directory = None if options.result_dir is None else Path(options.result_dir)
    unknown = set(only) - EXPERIMENTS.keys()
    if unknown:
        raise LoadgenError(
            f"--only {' '.join(sorted(unknown))}: known are {', '.join(EXPERIMENTS)}"
        )
    if directory is not None:
        claim_directory(directory)
    rows: list[Row] = []
    drawn: dict[str, Any] = {}
    for name, experiment in EXPERIMENTS.items():
        if not only or name in only:
            outcome = experiment(QUICK if options.quick else FULL, say)
            rows += outcome.rows
            drawn |= outcome.figures
    print(as_text(table_of(rows)))
    for row in rows:
        if not row.agrees and row.why:
            print(
                textwrap.fill(f"\n{row.what}: {row.why}.", 118, subsequent_indent="  ")
            )
    if directory is not None:
        found = {
            "rows": [msgspec.to_builtins(row) | {"ratio": row.ratio} for row in rows],
            "figures": drawn,
        }
        (directory / "reproduce.json").write_text(json.dumps(found, indent=1) + "\n")
        if figures.available():
            from loadgen.twin.paper.pictures import draw_all

            draw_all(drawn, directory)
        print(f"\nresults: {directory / 'reproduce.json'}")
    return 0


def table_of(rows: list[Row]) -> Table:
    """Theirs, ours, the ratio, and whether they differ by more than 20%."""
    header = ["what", "paper", "ours", "ours / paper", ""]
    lines = []
    for row in rows:
        low, high = row.theirs
        sign = ">= " if row.at_least else "< " if row.at_most else ""
        theirs = f"{sign}{low:g}" + (f" to {high:g}" if high != low else "") + row.unit
        verdict = "agrees" if row.agrees else "differs"
        ours = f"{row.ours:,.0f}" if row.ours >= 1000 else f"{row.ours:.3g}"
        lines.append(
            [row.what, theirs, f"{ours}{row.unit}", f"{row.ratio:.2f}", verdict]
        )
    return header, lines
