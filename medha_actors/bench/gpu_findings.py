"""What a part of the GPU check finds, row by row: each is on disk at once, so that what was
measured before a crash is kept."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

ROWS = "rows.jsonl"


class Findings:
    """Rows of one part, in the order of finding, and a folder for its files.

    `ends_at` is the monotonic second at which the part's process is ended.
    """

    def __init__(self, folder: Path, ends_at: float) -> None:
        self.folder = folder
        self.ends_at = ends_at

    def add(
        self,
        name: str,
        value: float,
        unit: str = "",
        *,
        most: float | None = None,
        least: float | None = None,
    ) -> None:
        """A number that was measured; its target, if it has one, is `most` or `least`."""
        row: dict[str, Any] = {"name": name, "value": float(value), "unit": unit}
        if most is not None:
            row |= {"target": f"<= {most:g}", "met": bool(value <= most)}
        if least is not None:
            row |= {"target": f">= {least:g}", "met": bool(value >= least)}
        self._write(row)

    def check(self, name: str, holds: bool, remark: str = "") -> None:
        """Something that must be so; `remark` says how it is."""
        row = {"name": name, "value": remark or ("yes" if holds else "no"), "unit": ""}
        self._write(row | {"target": "holds", "met": bool(holds)})

    def say(self, name: str, remark: str) -> None:
        """A fact without a target."""
        self._write({"name": name, "value": remark, "unit": ""})

    def left_s(self) -> float:
        """Seconds until this process is ended."""
        return self.ends_at - time.monotonic()

    def _write(self, row: dict[str, Any]) -> None:
        with (self.folder / ROWS).open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows that a part has left; a line that a crash cut short is left out."""
    file = folder / ROWS
    if not file.exists():
        return []
    rows = []
    for line in file.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
