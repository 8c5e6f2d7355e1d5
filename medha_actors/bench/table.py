"""Rows of a benchmark as a table, and as JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any


def command(
    prog: str,
    description: str,
    rounds: int,
    run: Callable[[int], Awaitable[list[dict[str, Any]]]],
) -> None:
    """The command line of a benchmark of rounds: run it, print its table."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    said = "rounds, of which the medians count (%(default)s)"
    parser.add_argument("--repeats", type=int, default=rounds, help=said)
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    given = parser.parse_args()

    async def measured() -> list[dict[str, Any]]:
        return await run(given.repeats)

    write_table(asyncio.run(measured()), given.json)


def write_table(rows: list[dict[str, Any]], file: Path | None) -> None:
    """Print the rows; write them to a file as well, with the machine they were measured on."""
    print(table(rows))
    if file is not None:
        machine = platform.processor() or platform.machine()
        file.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1))


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as an aligned text table."""
    lines = [list(rows[0])]
    for row in rows:
        lines.append([_text(value) for value in row.values()])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = []
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        aligned.append("  ".join(cells))
    return "\n".join(aligned)


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
