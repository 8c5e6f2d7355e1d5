"""Cells: the coordinates of a grid of stage actors, and who is linked with whom. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Cell(NamedTuple):
    """One actor's place: pipeline stage `stage` of KV group `group`."""

    stage: int
    group: int


class Shape(NamedTuple):
    """`stages` pipeline stages by `groups` KV groups."""

    stages: int
    groups: int

    def cells(self) -> Iterator[Cell]:
        """All cells, stage by stage."""
        for stage in range(self.stages):
            for group in range(self.groups):
                yield Cell(stage, group)

    def dials(self, cell: Cell) -> list[Cell]:
        """Whom a cell connects to: the stage after it, and its own stage in the later groups."""
        later = [Cell(cell.stage, group) for group in range(cell.group + 1, self.groups)]
        if cell.stage + 1 < self.stages:
            return [Cell(cell.stage + 1, cell.group), *later]
        return later

    def controlled(self, cell: Cell) -> bool:
        """Whether the controller connects to it: batches go to the first stage, results come from
        the last."""
        return cell.stage in (0, self.stages - 1)

    def callers(self, cell: Cell) -> int:
        """How many peers connect to a cell."""
        dialling = [other for other in self.cells() if cell in self.dials(other)]
        return len(dialling) + self.controlled(cell)
