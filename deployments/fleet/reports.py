"""FleetReports: the telemetry of several grids as that of one engine. Every series of a grid gets
its name as the label `grid`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from medha_actors.errors import MedhaError, UnavailableError
from medha_actors.telemetry.histogram import Family, Labels
from medha_actors.telemetry.reports import Asked, Reports, Snapshot, StepReport
from medha_actors.telemetry.timelines import Timeline


class FleetReports:
    """`grids` tells who is there, by name."""

    def __init__(self, grids: Callable[[], Mapping[str, Reports]]) -> None:
        self._grids = grids

    async def metrics(self) -> list[Family]:
        """Of all grids that answer."""
        grids = dict(self._grids())
        calls = [grid.metrics() for grid in grids.values()]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        found: dict[str, list[Family]] = {}
        for name, answer in zip(grids, answers, strict=True):
            if isinstance(answer, MedhaError):
                continue
            if isinstance(answer, BaseException):
                raise answer
            found[name] = answer
        if not found:
            raise UnavailableError("no grid is there")
        return merged(found)

    async def report(self, replica: str, families: list[Family]) -> None:
        """Every grid is told, so that whichever is asked knows."""
        calls = [grid.report(replica, families) for grid in self._grids().values()]
        await asyncio.gather(*calls, return_exceptions=True)

    async def find_timelines(self, name: str) -> list[Timeline]:
        found = await asyncio.gather(*[grid.find_timelines(name) for grid in self._all()])
        return [timeline for some in found for timeline in some]

    async def take_timelines(self, asked: Asked) -> list[Timeline]:
        found = await asyncio.gather(*[grid.take_timelines(asked) for grid in self._all()])
        return [timeline for some in found for timeline in some]

    async def last_timelines(self, count: int) -> tuple[list[Timeline], list[StepReport]]:
        timelines: list[Timeline] = []
        steps: list[StepReport] = []
        for grid in self._all():
            some, of_them = await grid.last_timelines(count)
            timelines += some
            steps += of_them
        return timelines, steps

    async def snapshot(self, after: int) -> Snapshot:
        """Of the first grid: the live page draws one."""
        return await self._all()[0].snapshot(after)

    def _all(self) -> list[Reports]:
        grids = self._grids()
        if not grids:
            raise UnavailableError("no grid is there")
        return [grids[name] for name in sorted(grids)]


def merged(found: Mapping[str, list[Family]]) -> list[Family]:
    """The families of all grids. What a replica reports of itself stands with every grid, and is
    told once."""
    families: dict[str, Family] = {}
    for name, own in found.items():
        for family in own:
            whole = families.setdefault(
                family.name, Family(family.name, family.kind, family.help, {}, {})
            )
            for labels, value in family.values.items():
                whole.values[_labelled(labels, name)] = value
            for labels, histogram in family.histograms.items():
                whole.histograms[_labelled(labels, name)] = histogram
    return list(families.values())


def _labelled(labels: Labels, grid: str) -> Labels:
    names = [label for label, _ in labels]
    return labels if "replica" in names else (*labels, ("grid", grid))
