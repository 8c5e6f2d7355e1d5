"""`soak`: mixed load for a long time with deaths in its first half, and nothing may have grown.

A warm-up, a KV cache filled to the last page and a quiet time come before the first look, a quiet
time before each later one. Deaths stop at half-time, so that a leak in a process that replaced
another has time to show.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.chaos import census, tables
from tests.chaos.filling import fill
from tests.chaos.growth import Snapshot, grown, rows
from tests.chaos.server import Server, running
from tests.chaos.traffic import Traffic

_WARM_UP: Final = 0.2  # of the time of the load, at most `_WARM_UP_S`
_WARM_UP_S: Final = 180.0
_QUIET: Final = 0.1
_QUIET_S: Final = 60.0
_DEATH_EVERY_S: Final = 150.0
_VICTIMS: Final = ("stage", "scheduler", "stage")


class Report(msgspec.Struct, frozen=True):
    """One soak."""

    minutes: float
    deaths: list[str]
    sent: dict[str, int]
    refused: dict[str, int]  # told to try again later
    wrong: dict[str, int]
    moments: list[Snapshot]  # at the start, after the deaths, at the end
    grown: list[str]


def run(minutes: float, results: Path) -> int:
    """Exit status 1 if something has grown, or a request did not get what it should."""
    half_s = 30.0 * minutes
    quiet_s = min(_QUIET_S, 2 * half_s * _QUIET)
    deaths: list[str] = []
    with running(results / "server") as server:
        traffic = Traffic(server.url, server.model, seed=1)
        asyncio.run(traffic.run(min(_WARM_UP_S, 2 * half_s * _WARM_UP)))
        fill(server)
        moments = [look(server, quiet_s)]
        asyncio.run(_deadly(server, traffic, half_s, deaths))
        moments.append(look(server, quiet_s))
        asyncio.run(traffic.run(half_s))
        moments.append(look(server, quiet_s))
    report = Report(
        minutes=minutes,
        deaths=deaths,
        sent=dict(traffic.sent),
        refused=dict(traffic.refused),
        wrong=dict(traffic.wrong),
        moments=moments,
        grown=grown(moments[0], moments[-1]),
    )
    print(text(report))
    tables.save(results / "soak.json", report)
    return int(bool(report.grown or report.wrong))


def look(server: Server, quiet_s: float) -> Snapshot:
    """What the server holds after a quiet time."""
    server.settle()
    time.sleep(quiet_s)
    alive = server.settle()
    values = server.metrics()
    names = ("medha_controller_tasks", "medha_replica_tasks")
    tasks = [value for (name, _), value in values.items() if name in names]
    return Snapshot(
        processes=alive,
        pages=int(values["medha_kv_cache_pages", "used"]),
        tasks=int(sum(tasks)),
        shared_memory=census.shared_memory(),
        folders=census.folders(),
    )


async def _deadly(
    server: Server, traffic: Traffic, seconds: float, deaths: list[str]
) -> None:
    """Load, and a death now and then."""
    async with asyncio.TaskGroup() as group:
        before = server.census()
        load = group.create_task(traffic.run(seconds))
        count = max(2, int(seconds / _DEATH_EVERY_S))
        for role in itertools.islice(itertools.cycle(_VICTIMS), count):
            await asyncio.wait({load}, timeout=seconds / (count + 1))
            able = census.victims(before, await asyncio.to_thread(server.census), role)
            if able and not load.done():
                os.kill(able[len(deaths) % len(able)], signal.SIGKILL)
                deaths.append(role)
                print(f"soak: killed a {role}", file=sys.stderr, flush=True)


def text(report: Report) -> str:
    """For people: what is held, what was sent, what is wrong."""
    head = ("process", "number", "memory, MB", "descriptors", "threads")
    moments = report.moments
    others: Sequence[tuple[str, list[Any]]] = (
        ("KV pages in use", [moment.pages for moment in moments]),
        ("tasks", [moment.tasks for moment in moments]),
        ("segments in /dev/shm", [len(moment.shared_memory) for moment in moments]),
        ("folders /tmp/medha-*", [len(moment.folders) for moment in moments]),
    )
    lines = [
        f"{report.minutes:g} minutes, {sum(report.sent.values()):,} requests, killed: "
        f"{', '.join(report.deaths)}. Each figure: at the start / after the deaths / at the end.",
        "",
        tables.markdown(head, rows(moments)),
        "",
        *[f"- {what}: {' / '.join(map(str, values))}" for what, values in others],
        f"- sent: {_counts(report.sent)}",
        f"- told to try again later: {_counts(report.refused)}",
        f"- wrong answers: {_counts(report.wrong)}",
        f"- grown: {'; '.join(report.grown) or 'nothing'}",
    ]
    return "\n".join(lines)


def _counts(counts: dict[str, int]) -> str:
    return (
        ", ".join([f"{name} {count}" for name, count in sorted(counts.items())])
        or "none"
    )
