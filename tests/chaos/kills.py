"""`kills`: every actor dies under load, and what it costs is measured.

Eight streams and a long prefill are in flight when a process gets SIGKILL (or is stopped for a
while); probes tell when new requests are answered again. The table of docs/reliability.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Final

import msgspec

from tests.chaos import census, tables
from tests.chaos.judging import Goal, Seen, Stream, judge, missed, most_of_one
from tests.chaos.server import NotSettledError, Server, running
from tests.chaos.streams import Load, Prober

_ALL = 9
_WATCH_S = 120.0  # the longest time that a death is watched
NOT_AT_REST = "the server did not come to rest"
_HELD = "medha_http_requests_open"
_MOST_QUESTIONS = 20  # to find out which replica holds how many streams
_STEADY_PROBES = 20  # so many answered in a row, and the service is taken to be back


class Kill(msgspec.Struct, frozen=True):
    """What dies, and what that may cost."""

    name: str
    what: str
    role: str
    goal: Goal
    every: bool = False  # all processes of the role instead of one
    stopped_s: float | None = None  # stopped for so long, instead of killed
    replicas: int = 1  # of the ingress


KILLS: Final = (
    Kill("stage", "a stage", "stage", Goal(whole=_ALL, pause_s=3.0)),
    Kill("stages", "both stages", "stage", Goal(whole=_ALL), every=True),
    Kill(
        "stopped-stage",
        "a stage, stopped for 3 s",
        "stage",
        Goal(whole=_ALL),
        stopped_s=3.0,
    ),
    Kill(
        "controller", "the scheduler actor", "scheduler", Goal(whole=_ALL, back_s=5.0)
    ),
    Kill(
        "serve-controller", "Serve's controller", "serve controller", Goal(whole=_ALL)
    ),
    Kill("proxy", "the proxy actor", "proxy", Goal(whole=_ALL)),
    Kill("haproxy-manager", "HAProxy's manager", "haproxy manager", Goal(whole=_ALL)),
    Kill("haproxy", "HAProxy", "haproxy", Goal(whole=_ALL, back_s=5.0)),
    Kill(
        "ingress",
        "one of two ingress replicas",
        "ingress",
        Goal(whole=_ALL, neighbour_pause_s=1.0),
        replicas=2,
    ),
)
NAMES: Final = tuple(kill.name for kill in KILLS)


class Outcome(msgspec.Struct, frozen=True):
    """One death. Bytes: resident, of all processes of the server."""

    kill: str
    repeat: int
    in_flight: int  # streams that had not ended when it happened
    tokens: list[int]  # that each stream had got by then
    prefilled: int  # tokens of the long prompt by then
    seen: Seen
    replaced: dict[str, int]
    bytes_before: int
    bytes_after: int
    missed: list[str]


def run(names: Sequence[str], repeats: int, results: Path) -> int:
    """Measure, print the table, write kills.json; exit status 1 if a goal was missed."""
    chosen = [kill for kill in KILLS if not names or kill.name in names]
    outcomes: list[Outcome] = []
    references: dict[str, Stream] = {}
    try:
        for replicas in sorted({kill.replicas for kill in chosen}):
            here = [kill for kill in chosen if kill.replicas == replicas]
            turns = [
                (kill, repeat)
                for repeat, kill in itertools.product(range(repeats), here)
            ]
            # A server that does not come to rest is replaced by a fresh one.
            while turns:
                with running(results / "server", replicas=replicas) as server:
                    references = references or undisturbed(server)
                    turns = _deaths(server, turns, references, outcomes)
    finally:  # also what was measured before an interruption
        print(table(outcomes))
        tables.save(results / "kills.json", outcomes)
    return int(any(outcome.missed for outcome in outcomes))


def undisturbed(server: Server) -> dict[str, Stream]:
    """The same requests with nothing dying, by name."""
    load = Load(server.url, server.model)
    asyncio.run(load.run())
    for stream in load.all:
        if stream.error is not None:
            raise RuntimeError(f"{stream.name} failed undisturbed: {stream.error}")
    return {stream.name: stream for stream in load.all}


def _deaths(
    server: Server,
    turns: Sequence[tuple[Kill, int]],
    references: Mapping[str, Stream],
    outcomes: list[Outcome],
) -> list[tuple[Kill, int]]:
    """Take turns as long as the server comes to rest after each; returns those that are left."""
    for number, (kill, repeat) in enumerate(turns):
        outcome = _death(server, kill, repeat, references)
        if outcome is None:
            _say(f"{kill.name}: there is no such process, nothing to kill")
            continue
        outcomes.append(outcome)
        _say(_line(outcome))
        if NOT_AT_REST in outcome.missed:
            return list(turns[number + 1 :])
    return []


def _death(
    server: Server, kill: Kill, repeat: int, references: Mapping[str, Stream]
) -> Outcome | None:
    """One turn, from rest to rest; None where there is nobody to kill."""
    before = server.settle()
    if not census.pids(before, kill.role):
        return None
    watch = _Watch(server, kill, repeat, before)
    asyncio.run(watch.run())
    seen = judge(
        watch.load.all, references, watch.prober.probes, watch.killed_at, watch.at_risk
    )
    short = missed(kill.goal, seen)
    if watch.in_flight < seen.streams:
        short.append(f"only {watch.in_flight} of {seen.streams} streams were in flight")
    try:
        after = server.settle()
    except NotSettledError as error:
        _say(f"{kill.name}: {error}")
        after = server.census()
        short.append(NOT_AT_REST)
    return Outcome(
        kill=kill.name,
        repeat=repeat,
        in_flight=watch.in_flight,
        tokens=watch.tokens,
        prefilled=watch.prefilled,
        seen=seen,
        replaced=census.replaced(before, after),
        bytes_before=sum([process.resident_bytes for process in before]),
        bytes_after=sum([process.resident_bytes for process in after]),
        missed=short,
    )


class _Watch:
    """The load, the kill in the midst of it, and the probes from then on."""

    def __init__(
        self, server: Server, kill: Kill, repeat: int, before: Sequence[census.Process]
    ) -> None:
        self._server = server
        self._kill = kill
        self._repeat = repeat
        self._before = before
        self.load = Load(server.url, server.model)
        self.prober = Prober(server.url, server.model)
        self.killed_at = 0.0
        self.in_flight = 0
        self.tokens: list[int] = []
        self.prefilled = 0
        self.at_risk: int | None = None

    async def run(self) -> None:
        """Until all streams have ended and the service is steady, or for `_WATCH_S`."""
        async with asyncio.TaskGroup() as group:
            streams = group.create_task(self.load.run())
            await self.load.ready.wait()
            victims = await asyncio.to_thread(self._victims)
            self.at_risk = await self._most_of_one_replica()
            self.in_flight = len(
                [stream for stream in self.load.all if not stream.ended]
            )
            self.tokens = [len(stream.moments) for stream in self.load.all]
            self.prefilled = self.load.prefilled
            self.killed_at = time.perf_counter()
            until = self.killed_at + _WATCH_S
            group.create_task(self._strike(victims))
            await self.prober.run(
                lambda: (
                    (streams.done() and self._steady()) or time.perf_counter() > until
                )
            )
            streams.cancel()  # harmless if it is done

    def _victims(self) -> list[int]:
        """Who dies: all of the role, or another one each time."""
        able = census.victims(self._before, self._server.census(), self._kill.role)
        return able if self._kill.every else [able[self._repeat % len(able)]]

    async def _most_of_one_replica(self) -> int | None:
        """How many of the streams one ingress replica holds, at most. Each tells its own figure
        when it is asked, so they are asked for a while until the figures make up all streams."""
        if self._kill.replicas == 1:
            return None
        wanted = len([stream for stream in self.load.all if not stream.ended])
        held: list[int] = []
        for _ in range(_MOST_QUESTIONS):
            values = await asyncio.to_thread(self._server.metrics)
            open_now = {key: value for key, value in values.items() if key[0] == _HELD}
            held = [int(value) for value in open_now.values()]
            if sum(held) == wanted:
                break
        return most_of_one(held, wanted)

    async def _strike(self, victims: Sequence[int]) -> None:
        if self._kill.stopped_s is None:
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
            return
        for victim in victims:
            os.kill(victim, signal.SIGSTOP)
        await asyncio.sleep(self._kill.stopped_s)
        for victim in victims:
            with contextlib.suppress(
                ProcessLookupError
            ):  # taken for hung, and replaced
                os.kill(victim, signal.SIGCONT)

    def _steady(self) -> bool:
        latest = self.prober.probes[-_STEADY_PROBES:]
        return len(latest) == _STEADY_PROBES and not any(
            probe.error is not None for probe in latest
        )


def table(outcomes: Sequence[Outcome]) -> str:
    """One row for each kind of death, its repetitions beside each other."""
    head = (
        "killed",
        "streams whole",
        "cut",
        "longest pause, s: median, worst",
        "back after, s",
        "replaced",
        "memory before, after, MB",
        "missed",
    )
    rows: list[list[str]] = []
    for kill in KILLS:
        turns = [outcome for outcome in outcomes if outcome.kill == kill.name]
        if turns:
            rows.append(_row(kill, turns))
    return tables.markdown(head, rows)


def _row(kill: Kill, turns: Sequence[Outcome]) -> list[str]:
    seen = [turn.seen for turn in turns]
    typical = _present([each.pause_median_s for each in seen])
    worst = _present([each.pause_max_s for each in seen])
    roles = sorted(set().union(*[turn.replaced for turn in turns]))
    misses = sorted(set().union(*[turn.missed for turn in turns]))
    counts = [
        f"{role} {_each([turn.replaced.get(role, 0) for turn in turns])}"
        for role in roles
    ]
    return [
        kill.what,
        f"{_each([each.whole for each in seen])} of {seen[0].streams}",
        _each([each.cut for each in seen]),
        f"{tables.seconds(median(typical) if typical else None)}, "
        f"{tables.seconds(max(worst, default=None))}",
        ", ".join([tables.seconds(each.back_s) for each in seen]),
        "; ".join(counts) or "nothing",
        f"{tables.megabytes(turns[0].bytes_before)}, {tables.megabytes(turns[-1].bytes_after)}",
        "; ".join(misses) or "nothing",
    ]


def _present(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _each(values: Sequence[int]) -> str:
    """All values, or the one that they all are."""
    return str(values[0]) if len(set(values)) == 1 else ", ".join(map(str, values))


def _line(outcome: Outcome) -> str:
    seen = outcome.seen
    return (
        f"{outcome.kill} {outcome.repeat + 1}: {seen.whole} of {seen.streams} whole "
        f"({outcome.in_flight} in flight with {outcome.tokens} tokens, {outcome.prefilled} "
        f"prefilled), pauses {tables.seconds(seen.pause_median_s)} to "
        f"{tables.seconds(seen.pause_max_s)} s, back after {tables.seconds(seen.back_s)} s, "
        f"replaced {outcome.replaced or 'nothing'}, missed {outcome.missed or 'nothing'}, "
        f"errors {list(seen.errors)}"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
