"""Cells: the coordinates of a grid of stage actors, and who is linked with whom. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Cell(NamedTuple):
    """One actor's place: tensor rank `rank` of pipeline stage `stage` of KV group `group`."""

    stage: int
    group: int
    rank: int = 0


class Shape(NamedTuple):
    """`stages` pipeline stages by `groups` KV groups by `ranks` tensor ranks."""

    stages: int
    groups: int
    ranks: int = 1

    def cells(self) -> Iterator[Cell]:
        """All cells, stage by stage, and in a stage team by team."""
        for stage in range(self.stages):
            for group in range(self.groups):
                yield from self.team(stage, group)

    def team(self, stage: int, group: int) -> list[Cell]:
        """The ranks that share the layers of a stage in a group."""
        return [Cell(stage, group, rank) for rank in range(self.ranks)]

    def dials(self, cell: Cell) -> list[Cell]:
        """Whom a cell connects to: the stage after it, its own stage in the later groups (each
        time the same rank), and the later ranks of its team."""
        found = []
        if cell.stage + 1 < self.stages:
            found.append(cell._replace(stage=cell.stage + 1))
        for group in range(cell.group + 1, self.groups):
            found.append(cell._replace(group=group))
        for rank in range(cell.rank + 1, self.ranks):
            found.append(cell._replace(rank=rank))
        return found

    def controlled(self, cell: Cell) -> bool:
        """Whether the controller connects to it: batches go to the first stage, results come from
        the last, for each team to and from its first rank."""
        return cell.rank == 0 and cell.stage in (0, self.stages - 1)

    def callers(self, cell: Cell) -> int:
        """How many peers connect to a cell."""
        dialling = [other for other in self.cells() if cell in self.dials(other)]
        return len(dialling) + self.controlled(cell)
