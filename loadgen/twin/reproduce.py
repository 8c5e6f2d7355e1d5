"""`medha-loadgen reproduce`: the paper's table, theirs, ours and the ratio, and its figures, all
from the twin."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import msgspec

from loadgen import figures
from loadgen.errors import LoadgenError
from loadgen.results import claim_directory
from loadgen.run import Say
from loadgen.tables import Table, as_text
from loadgen.twin.experiments import convoy, scaling
from loadgen.twin.experiments.common import Row

EXPERIMENTS = {
    "convoy": convoy.convoy,
    "policies": convoy.policies,
    "capacity": convoy.rates,
    "sharing": convoy.sharing,
    "pools": convoy.pools,
    "spp": scaling.spp,
    "kvp": scaling.kvp,
    "3d": scaling.grids,
    "attention": scaling.attention,
    "frontier": scaling.frontier,
    "decision": scaling.decision,
}
FULL, QUICK = 300, 100  # requests of a run


def reproduce(only: list[str] | None, quick: bool, directory: Path | None, say: Say) -> int:
    """The whole command."""
    unknown = set(only or ()) - EXPERIMENTS.keys()
    if unknown:
        raise LoadgenError(
            f"--only {' '.join(sorted(unknown))}: known are {', '.join(EXPERIMENTS)}"
        )
    if directory is not None:
        claim_directory(directory)
    rows: list[Row] = []
    drawn = {}
    for name, experiment in EXPERIMENTS.items():
        if not only or name in only:
            outcome = experiment(QUICK if quick else FULL, say)
            rows += outcome.rows
            drawn |= outcome.figures
    print(as_text(table_of(rows)))
    for row in rows:
        if not row.agrees and row.why:
            print(textwrap.fill(f"\n{row.what}: {row.why}.", 118, subsequent_indent="  "))
    if directory is not None:
        found = {
            "rows": [msgspec.to_builtins(row) | {"ratio": row.ratio} for row in rows],
            "figures": drawn,
        }
        (directory / "reproduce.json").write_text(json.dumps(found, indent=1) + "\n")
        if figures.available():
            from loadgen.twin.pictures import draw_all

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
        lines.append([row.what, theirs, f"{ours}{row.unit}", f"{row.ratio:.2f}", verdict])
    return header, lines
