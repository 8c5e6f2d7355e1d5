"""What ingress replicas may ask the controller about: its remote methods for metrics, timelines and
the live page."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import islice
from statistics import quantiles
from typing import Any

import msgspec

from medha_actors.actors.telemetry.histogram import Family
from medha_actors.actors.telemetry.observer import Observer, Silence
from medha_actors.actors.telemetry.recorder import Step
from medha_actors.actors.telemetry.timelines import Timeline
from medha_actors.core.record import Waiting, waiting
from medha_actors.core.scheduler import Scheduler
from medha_actors.core.stats import Stats

_encode = msgspec.msgpack.Encoder().encode
_decode_families = msgspec.msgpack.Decoder(list[Family]).decode
_SHOWN = 24  # requests on the live page
_MAX_STEPS = 400


class Snapshot(msgspec.Struct, kw_only=True):
    """What the live page draws: the state now, and the steps since the last one."""

    now: float
    seq: int
    stages: int
    groups: int
    stats: Stats
    pages_per_group: int
    steps: list[Step]
    queue: list[Waiting]
    decoding: list[tuple[str, int, float]]  # request, tokens so far, seconds since its last token
    ttft_s: dict[str, float]
    tbt_s: dict[str, float]


class Asked(msgspec.Struct, frozen=True):
    """Finished timelines wanted by a replica: those of `always`, and those of `if_missed` that
    missed an objective."""

    always: list[str]
    if_missed: list[str]


_decode_asked = msgspec.msgpack.Decoder(Asked).decode


class Observed:
    """Mixed into the controller. Every answer is msgpack; with telemetry off it is that of an empty
    system."""

    _observer: Silence = Silence()
    _scheduler: Scheduler
    _now: Any
    config: Any

    async def metrics(self) -> bytes:
        """list[Family]: the engine's, then what the replicas reported."""
        if not isinstance(self._observer, Observer):
            return _encode([])
        families = self._observer.figures.families(
            self._scheduler.stats(), self.config.model_loading_config.model_id
        )
        tasks = {(): float(len(asyncio.all_tasks()))}
        families.append(Family("medha_controller_tasks", "gauge", "Tasks on the event loop", tasks))
        return _encode(families + _merged(self._observer.replicas.values()))

    async def report(self, replica: str, families: bytes) -> None:
        """A replica's own figures, whole."""
        if isinstance(self._observer, Observer):
            self._observer.replicas[replica] = _decode_families(families)

    async def find_timelines(self, name: str) -> bytes:
        """list[Timeline] of one trace, HTTP request or sequence."""
        return _encode(
            [] if not isinstance(self._observer, Observer) else self._observer.recorder.find(name)
        )

    async def take_timelines(self, asked: bytes) -> bytes:
        """list[Timeline] for spans (see Asked)."""
        if not isinstance(self._observer, Observer):
            return _encode([])
        wanted, recorder = _decode_asked(asked), self._observer.recorder
        found: list[Timeline | None] = [
            recorder.finished.get(request_id) or recorder.live.get(request_id)
            for request_id in wanted.always
        ]
        doubtful = [recorder.finished.get(request_id) for request_id in wanted.if_missed]
        return _encode(
            [t for t in found if t is not None]
            + [t for t in doubtful if t is not None and t.missed()]
        )

    async def last_timelines(self, count: int) -> bytes:
        """(list[Timeline], list[Step]): the last finished requests, the live ones, and what the
        stages did of late."""
        if not isinstance(self._observer, Observer):
            return _encode(([], []))
        recorder = self._observer.recorder
        skipped = max(0, len(recorder.finished) - count)
        timelines = [*islice(recorder.finished.values(), skipped, None), *recorder.live.values()]
        return _encode((timelines, list(recorder.steps)))

    async def snapshot(self, after: int) -> bytes:
        """A Snapshot with the steps after sequence number `after`."""
        assert isinstance(self._observer, Observer)
        recorder, figures, now = self._observer.recorder, self._observer.figures, self._now()
        scheduler, grid = self._scheduler, self._scheduler.grid
        fresh = [step for step in islice(reversed(recorder.steps), _MAX_STEPS) if step.seq > after]
        decoding = [
            (state.id, state.output, now - (timeline.last_token_at or now))
            for state in islice(scheduler.live.decoding.values(), _SHOWN)
            if (timeline := recorder.live.get(state.id)) is not None
        ]
        return _encode(
            Snapshot(
                now=now,
                seq=recorder.steps[-1].seq if recorder.steps else 0,
                stages=grid.stages,
                groups=grid.groups,
                stats=scheduler.stats(),
                pages_per_group=grid.pages_per_group,
                steps=fresh[::-1],
                queue=waiting(scheduler.live.queue, grid.groups, now, _SHOWN),
                decoding=decoding,
                ttft_s=percentiles(figures.ttft_s),
                tbt_s=percentiles(figures.tbt_s),
            )
        )


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """p50, p90 and p99 of recent values; empty while there are fewer than two."""
    data = list(values)
    if len(data) < 2:
        return {}
    cuts = quantiles(data, n=100, method="inclusive")
    return {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98]}


def _merged(replicas: Iterable[list[Family]]) -> list[Family]:
    """One family per name: the replicas' series differ in their label `replica`."""
    merged: dict[str, Family] = {}
    for family in (family for families in replicas for family in families):
        into = merged.setdefault(family.name, Family(family.name, family.kind, family.help, {}, {}))
        into.values.update(family.values)
        into.histograms.update(family.histograms)
    return list(merged.values())
