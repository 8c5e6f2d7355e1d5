"""Rows of a benchmark as a table, and as JSON."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any


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
