"""FleetReports: the telemetry of several grids as that of one engine. Every series of a grid gets
its name as the label `grid`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Final

import msgspec

from medha_actors.errors import MedhaError, UnavailableError
from medha_actors.telemetry.histogram import Family, Labels
from medha_actors.telemetry.reports import Asked, GridRow, Reports, Snapshot, StepReport
from medha_actors.telemetry.timelines import Timeline

_NEVER: Final = 2**62  # no step has so high a number


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
        found = await asyncio.gather(
            *[grid.find_timelines(name) for grid in self._all()]
        )
        return list(chain.from_iterable(found))

    async def take_timelines(self, asked: Asked) -> list[Timeline]:
        found = await asyncio.gather(
            *[grid.take_timelines(asked) for grid in self._all()]
        )
        return list(chain.from_iterable(found))

    async def last_timelines(
        self, count: int
    ) -> tuple[list[Timeline], list[StepReport]]:
        timelines: list[Timeline] = []
        steps: list[StepReport] = []
        for grid in self._all():
            some, of_them = await grid.last_timelines(count)
            timelines += some
            steps += of_them
        return timelines, steps

    async def snapshot(self, after: int, grid: str = "") -> Snapshot:
        """Of one grid in all detail, of all of them a row."""
        found = await self._snapshots(after, grid)
        if not found:
            raise UnavailableError("no grid is there")
        drawn = grid
        if grid not in found:
            drawn = min(found)
            found |= await self._snapshots(0, drawn, only=drawn)
        rows = [_row(name, found[name]) for name in sorted(found)]
        return msgspec.structs.replace(found[drawn], grid=drawn, grids=rows)

    async def _snapshots(
        self, after: int, grid: str, only: str = ""
    ) -> dict[str, Snapshot]:
        """Of those that answer, by name; steps of one alone."""
        grids = {name: one for name, one in self._grids().items() if only in ("", name)}
        calls = [
            one.snapshot(after if name == grid else _NEVER)
            for name, one in grids.items()
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        found: dict[str, Snapshot] = {}
        for name, answer in zip(grids, answers, strict=True):
            if isinstance(answer, Snapshot):
                found[name] = answer
            elif not isinstance(answer, MedhaError):
                raise answer
        return found

    def _all(self) -> list[Reports]:
        grids = self._grids()
        if not grids:
            raise UnavailableError("no grid is there")
        return [grids[name] for name in sorted(grids)]


def _row(name: str, snapshot: Snapshot) -> GridRow:
    stats = snapshot.stats
    return GridRow(
        name=name,
        running=stats.running,
        prefilling=stats.prefilling,
        waiting=stats.waiting,
        backlog_s=stats.backlog_s,
        kv_usage=stats.kv_usage,
        generation_tokens_total=stats.generation_tokens_total,
        ttft_s=snapshot.ttft_s,
    )


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
