"""Reporter: the controller's answers to what ingress replicas ask of its telemetry."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import islice

import numpy as np

from medha_actors.actors.telemetry.observer import Observer
from medha_actors.core.record import waiting
from medha_actors.core.scheduler import Scheduler
from medha_actors.telemetry.histogram import Family, Labels
from medha_actors.telemetry.reports import Asked, Snapshot, StepReport
from medha_actors.telemetry.timelines import Timeline

_SHOWN = 24  # requests on the live page
_MAX_STEPS = 400


class Mute:
    """Telemetry is off, or the engine starts: the answers of an empty system. Nobody draws one, so
    there is no snapshot."""

    def metrics(self) -> list[Family]:
        return []

    def report(self, replica: str, families: list[Family]) -> None:
        """Not kept."""

    def find_timelines(self, name: str) -> list[Timeline]:
        return []

    def take_timelines(self, asked: Asked) -> list[Timeline]:
        return []

    def last_timelines(self, count: int) -> tuple[list[Timeline], list[StepReport]]:
        return [], []

    def snapshot(self, after: int, now: float) -> Snapshot | None:
        return None


class Reporter(Mute):
    """See medha_actors.telemetry.reports.Reports for what each answer is."""

    def __init__(self, observer: Observer, scheduler: Scheduler, model_id: str) -> None:
        self._observer = observer
        self._scheduler = scheduler
        self._model_id = model_id

    def metrics(self) -> list[Family]:
        families = self._observer.figures.families(
            self._scheduler.stats(), self._model_id
        )
        tasks: dict[Labels, float] = {(): float(len(asyncio.all_tasks()))}
        families.append(
            Family("medha_controller_tasks", "gauge", "Tasks on the event loop", tasks)
        )
        return families + _merged(self._observer.replicas.values())

    def report(self, replica: str, families: list[Family]) -> None:
        self._observer.replicas[replica] = families

    def find_timelines(self, name: str) -> list[Timeline]:
        return self._observer.recorder.find(name)

    def take_timelines(self, asked: Asked) -> list[Timeline]:
        recorder = self._observer.recorder
        taken: list[Timeline] = []
        for request_id in asked.always:
            timeline = recorder.finished.get(request_id) or recorder.live.get(
                request_id
            )
            if timeline is not None:
                taken.append(timeline)
        for request_id in asked.if_missed:
            timeline = recorder.finished.get(request_id)
            if timeline is not None and timeline.missed():
                taken.append(timeline)
        return taken

    def last_timelines(self, count: int) -> tuple[list[Timeline], list[StepReport]]:
        recorder = self._observer.recorder
        skipped = max(0, len(recorder.finished) - count)
        timelines = [
            *islice(recorder.finished.values(), skipped, None),
            *recorder.live.values(),
        ]
        return timelines, list(recorder.steps)

    def snapshot(self, after: int, now: float) -> Snapshot | None:
        recorder = self._observer.recorder
        requests = self._observer.figures.requests
        grid = self._scheduler.grid
        live = self._scheduler.live
        recent = islice(reversed(recorder.steps), _MAX_STEPS)
        steps = [step for step in recent if step.seq > after]
        steps.reverse()
        return Snapshot(
            now=now,
            seq=recorder.steps[-1].seq if recorder.steps else 0,
            stages=grid.stages,
            groups=grid.groups,
            stats=self._scheduler.stats(),
            pages_per_group=grid.pages_per_group,
            steps=steps,
            queue=waiting(live.queue, grid.groups, now, _SHOWN),
            decoding=self._decoding(now),
            ttft_s=_percentiles(requests.ttft_s),
            tbt_s=_percentiles(requests.tbt_s),
        )

    def _decoding(self, now: float) -> list[tuple[str, int, float]]:
        """Requests that decode, their tokens so far, seconds since the last one."""
        decoding: list[tuple[str, int, float]] = []
        for state in islice(self._scheduler.live.decoding.values(), _SHOWN):
            timeline = self._observer.recorder.live.get(state.id)
            if timeline is not None:
                last_token_at = timeline.last_token_at or now
                decoding.append((state.id, state.output, now - last_token_at))
        return decoding


def _percentiles(values: Iterable[float]) -> dict[str, float]:
    """p50, p90 and p99 of recent values; empty while there are fewer than two."""
    data = list(values)
    if len(data) < 2:
        return {}
    p50, p90, p99 = np.percentile(data, (50, 90, 99)).tolist()
    return {"p50": p50, "p90": p90, "p99": p99}


def _merged(replicas: Iterable[list[Family]]) -> list[Family]:
    """One family per name: the replicas' series differ in their label `replica`."""
    merged: dict[str, Family] = {}
    for families in replicas:
        for family in families:
            if family.name not in merged:
                merged[family.name] = Family(
                    family.name, family.kind, family.help, {}, {}
                )
            merged[family.name].values.update(family.values)
            merged[family.name].histograms.update(family.histograms)
    return list(merged.values())
