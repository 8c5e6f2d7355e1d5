"""What the GPU check reports: one table, and the same as JSON and Markdown."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

_PROBE = """
import json, platform, torch
assert torch.cuda.is_available()
card = torch.cuda.get_device_properties(0)
try:
    from triton import __version__ as triton
except ImportError:
    triton = None
print(json.dumps({
    "card": card.name,
    "memory_gib": round(card.total_memory / 2**30, 1),
    "capability": f"{card.major}.{card.minor}",
    "torch": torch.__version__,
    "triton": triton,
    "python": platform.python_version(),
}))
"""


class Outcome(NamedTuple):
    """Of one part: how it ended ("done" if well), how long it took, and what it found."""

    part: str
    how: str
    seconds: float
    rows: list[dict[str, Any]]

    @property
    def good(self) -> bool:
        """Whether it came to its end with all targets met; a part that is not there counts."""
        if self.how == "not there":
            return True
        return self.how == "done" and all(row.get("met", True) for row in self.rows)


def card() -> dict[str, Any] | None:
    """The GPU and its software, asked in a process of its own; None without one."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return None
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def lines_of(outcomes: Sequence[Outcome]) -> list[tuple[str, str, str, str, str]]:
    """Part, name, measured, target, met; of a part that did not end well one line more."""
    lines = []
    for outcome in outcomes:
        for row in outcome.rows:
            met = {True: "yes", False: "NO", None: ""}[row.get("met")]
            name = str(row["name"])
            lines.append(
                (outcome.part, name, _measured(row), str(row.get("target", "")), met)
            )
        took = f"{outcome.seconds:.0f} s"
        bad = outcome.how not in ("done", "not there")
        lines.append((outcome.part, f"({outcome.how})", took, "", "NO" if bad else ""))
    return lines


def _measured(row: dict[str, Any]) -> str:
    value = row["value"]
    if isinstance(value, float):
        value = f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{value} {row['unit']}".strip()


def table(card: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """All that was found as aligned text, the headline first."""
    lines = [("part", "name", "measured", "target", "met?"), *lines_of(outcomes)]
    widths = [min(60, max(map(len, column))) for column in zip(*lines, strict=True)]
    texts = [_headline(card)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        texts.append("  ".join(cells).rstrip())
    return "\n".join(texts)


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many targets were met, and those that were not."""
    judged = [line for line in lines_of(outcomes) if line[4]]
    missed = [line for line in judged if line[4] == "NO"]
    lines = [f"{len(judged) - len(missed)} of {len(judged)} targets met"]
    for part, name, measured, target, _ in missed:
        lines.append(f"missed: {part}: {name}: {measured} {target}".rstrip())
    return "\n".join(lines)


def write(card: dict[str, Any], outcomes: Sequence[Outcome], folder: Path) -> Path:
    """gpu-CARD-DATE.json and .md in `folder`; the path of the latter."""
    word = re.sub(r"[^a-z0-9]+", "-", card["card"].lower().replace("nvidia", "")).strip(
        "-"
    )
    stem = f"gpu-{word}-{time.strftime('%Y-%m-%d-%H%M')}"
    found = {"card": card, "parts": [outcome._asdict() for outcome in outcomes]}
    (folder / f"{stem}.json").write_text(json.dumps(found, indent=1) + "\n")
    texts = [_headline(card), "", "| part | name | measured | target | met? |"]
    texts.append("|---|---|---|---|---|")
    for line in lines_of(outcomes):
        cells = [cell.replace("|", "/") for cell in line]
        texts.append(f"| {' | '.join(cells)} |")
    page = folder / f"{stem}.md"
    page.write_text("\n".join(texts) + "\n")
    return page


def _headline(card: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in card.items())
