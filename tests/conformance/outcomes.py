"""What became of one tool's run, and the table of them in docs/conformance.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HEAD: Final = ("tool", "version", "what it does here", "server", "result")
_BEGIN: Final = "<!-- results -->"
_END: Final = "<!-- end of results -->"
_CHECK: Final = re.compile(r"^(ok|failed): (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one tool. `why`: it could not be installed, or its script ended before its checks."""

    tool: str
    does: str
    version: str = "-"
    server: str = "-"
    passed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    why: str | None = None
    installed: bool = True

    @property
    def is_good(self) -> bool:
        """Nothing failed; a tool that cannot be had here is nobody's fault."""
        return not self.installed or bool(
            self.passed and not self.failed and self.why is None
        )

    @property
    def result(self) -> str:
        if not self.installed:
            return f"not installed: {self.why}"
        checks = f"{len(self.passed)} of {len(self.passed) + len(self.failed)}"
        reasons = [*self.failed, *([self.why] if self.why else [])]
        return "; ".join([checks, *reasons])

    def row(self) -> str:
        """Of the table."""
        cells = (self.tool, self.version, self.does, self.server, self.result)
        return f"| {' | '.join([cell.replace('|', '/') for cell in cells])} |"


def checks_of(said: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What went well and what did not, of a script's output."""
    found = _CHECK.findall(said)
    passed = [what for how, what in found if how == "ok"]
    failed = [what[:200] for how, what in found if how == "failed"]
    return tuple(passed), tuple(failed)


def write(page: Path, outcomes: list[Outcome]) -> None:
    """Put these rows into the page's table; those of other tools stay, and what a scripted engine
    did never replaces what a real one did."""
    before, rest = page.read_text().split(_BEGIN)
    table, after = rest.split(_END)
    rows = {_cell(line, 0): line for line in table.strip().splitlines()[2:]}
    for outcome in outcomes:
        known = rows.get(outcome.tool)
        if known is None or outcome.server != "scripted" or _cell(known, 3) != "real":
            rows[outcome.tool] = outcome.row()
    head = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    lines = "\n".join([*head, *rows.values()])
    page.write_text(f"{before}{_BEGIN}\n{lines}\n{_END}{after}")


def _cell(row: str, index: int) -> str:
    return row.split("|")[index + 1].strip()
