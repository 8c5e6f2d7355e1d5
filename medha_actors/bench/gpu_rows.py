"""Rows of the GPU check from parts that keep a table of their own, FOLDER/*.json: a list of objects
with `what` they are of, and figures by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# (what, figure) -> most or least
_TARGETS: dict[tuple[str, str], tuple[str, float]] = {
    ("decode of 1 at 1K", "graph ms"): ("<=", 6.2),
    ("decode of 64 at 1K", "graph ms"): ("<=", 10.0),
    ("decode of 1 at 1K", "graph gap ms"): ("<=", 0.3),
    ("decode of 64 at 1K", "graph gap ms"): ("<=", 0.3),
    ("prefill of 8192", "MFU"): (">=", 0.5),
    ("2K behind 128K", "MFU"): (">=", 0.4),
}
_LEFT_OUT = ("what", "kernels")


def rows_of_tables(folder: Path) -> list[dict[str, Any]]:
    """What the tables in the folder say; one that a crash cut short is left out."""
    rows: list[dict[str, Any]] = []
    for file in sorted(folder.glob("*.json")):
        try:
            found = json.loads(file.read_bytes())
        except ValueError:
            continue
        for entry in found:
            rows += _figures(entry)
    return rows


def _figures(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    what = str(entry.get("what", "?"))
    for name, value in entry.items():
        if name in _LEFT_OUT:
            continue
        row: dict[str, Any] = {"name": f"{what}: {name}", "value": value, "unit": ""}
        if name == "failed":
            row |= {"target": "none", "met": False}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            row |= {"value": float(value)} | _judged(what, name, value)
        else:
            row["value"] = str(value)
        yield row


def _judged(what: str, name: str, value: float) -> dict[str, Any]:
    if (what, name) not in _TARGETS:
        return {}
    sign, bound = _TARGETS[what, name]
    return {
        "target": f"{sign} {bound:g}",
        "met": value <= bound if sign == "<=" else value >= bound,
    }
