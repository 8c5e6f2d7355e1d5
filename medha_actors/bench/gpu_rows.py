"""Rows of the GPU check from parts that keep a table of their own, FOLDER/*.json: a list of objects
(or an object with such `rows`) that first say what they are of, then have figures by name."""

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
    ("ipc", "hop 2048 ms"): ("<=", 0.3),
}
_TORCHS = "error of torch"
_ERROR_SHARE = 1.5  # of it


def rows_of_tables(folder: Path) -> list[dict[str, Any]]:
    """What the tables in the folder say; one that a crash cut short is left out."""
    rows: list[dict[str, Any]] = []
    for file in sorted(folder.glob("*.json")):
        try:
            found = json.loads(file.read_bytes())
        except ValueError:
            continue
        for entry in found.get("rows", []) if isinstance(found, dict) else found:
            rows += _figures(entry)
    return rows


def _figures(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    figures = list(entry.items())
    what = str(figures[0][1])
    for name, value in figures[1:]:
        if isinstance(value, dict) or (
            isinstance(value, list) and value and len(str(value)) > 80
        ):
            continue  # more than a figure
        number = isinstance(value, int | float) and not isinstance(value, bool)
        row = {
            "name": f"{what}: {name}",
            "value": float(value) if number else str(value),
            "unit": "",
        }
        yield row | _judged(what, name, value, entry)


def _judged(what: str, name: str, value: Any, entry: dict[str, Any]) -> dict[str, Any]:
    """The target and whether it is met; of an error, how it compares with torch's own."""
    if name in ("failed", "different"):
        return {"target": "none", "met": not value}
    sign, bound = _TARGETS.get((what, name), ("", 0.0))
    if name == "error" and _TORCHS in entry:
        sign = "<="
        bound = _ERROR_SHARE * entry[_TORCHS]
    if not sign or isinstance(value, str):
        return {}
    return {
        "target": f"{sign} {bound:.3g}",
        "met": value <= bound if sign == "<=" else value >= bound,
    }
