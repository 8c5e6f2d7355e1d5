"""Figures as markdown, and as files. Pure, but for `save`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal and for docs/reliability.md."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join([f"| {' | '.join(cells)} |" for cells in lines])


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def megabytes(value: float) -> str:
    return f"{value / 1e6:,.0f}"


def save(path: Path, facts: Any) -> None:
    """As JSON for people and programs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(facts)) + b"\n")
