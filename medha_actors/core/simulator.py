"""The grid in simulated time, under the very scheduler of the product.

Stages work in order and one batch at a time; a batch occupies a stage as long as its slowest group takes there (the
groups move in step). Only three kinds of event exist: a request arrives, stage 0 becomes free, a batch leaves the last
stage. The times come from an ExecutionModel that stands for reality: the scheduler's own or another, with noise.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from medha_actors.config import MedhaConfig
from medha_actors.core.kv_plan import Grid
from medha_actors.core.predictor import ExecutionModel, load_of
from medha_actors.core.scheduler import Scheduler
from medha_actors.messages import (
    Accepted,
    Batch,
    Event,
    FinishedEvent,
    Rejected,
    Request,
    SampledToken,
    StepResult,
    TokenEvent,
)


@dataclass(slots=True)
class RequestLog:
    """What became of one request; instants in simulated epoch seconds."""

    request: Request
    answer: Accepted | Rejected
    token_times: list[float] = field(default_factory=list)
    finished: FinishedEvent | None = None

    @property
    def ttft_s(self) -> float | None:
        """Arrival to first token."""
        return self.token_times[0] - self.request.arrived_at if self.token_times else None


@dataclass(slots=True)
class SimulationResult:
    """All requests by id; seconds each stage worked; when the last batch was done."""

    requests: dict[str, RequestLog]
    busy_s: list[float]
    started_at: float
    ended_at: float
    batches: int

    @property
    def busy(self) -> list[float]:
        """Share of the time each stage worked, 0 to 1."""
        span_s = max(self.ended_at - self.started_at, 1e-12)
        return [seconds / span_s for seconds in self.busy_s]


class Simulation:
    """One run. `reality`: the model that times are taken from (None: the scheduler's own, uncorrected).

    `noise`: relative standard deviation of a batch's time; `hop_s`: from one stage to the next; `control_s`: from
    the last stage through the scheduler to stage 0; `in_flight`: the most batches on their way (None: stages + 1).
    """

    def __init__(
        self,
        config: MedhaConfig,
        grid: Grid,
        model: ExecutionModel,
        *,
        reality: ExecutionModel | None = None,
        noise: float = 0.0,
        seed: int = 0,
        hop_s: float = 0.0,
        control_s: float = 0.0,
        in_flight: int | None = None,
    ) -> None:
        self.scheduler = Scheduler(config, grid, model)
        self.now = 0.0
        self._reality, self._noise, self._random = reality or model, noise, random.Random(seed)
        self._hop_s, self._control_s = hop_s, control_s
        self._in_flight_limit = in_flight or grid.stages + 1
        self._free_at = [0.0] * grid.stages  # when each stage has done what it was given
        self._busy_s = [0.0] * grid.stages
        self._flights: list[tuple[float, int, Batch, tuple[float, ...]]] = []
        self._in_flight = self._batches = 0
        self._logs: dict[str, RequestLog] = {}

    def run(self, requests: Iterable[Request]) -> SimulationResult:
        """Serve requests, in order of arrival, to the end."""
        arrivals = iter(sorted(requests, key=lambda request: request.arrived_at))
        arrival = next(arrivals, None)
        started_at = self.now = arrival.arrived_at if arrival else 0.0
        while arrival is not None or self._flights:
            done_at = self._flights[0][0] if self._flights else float("inf")
            free_at = self._free_at[0] if self._free_at[0] > self.now else float("inf")
            arrival_at = arrival.arrived_at if arrival else float("inf")
            self.now = min(done_at, free_at, arrival_at)
            if arrival is not None and arrival_at <= self.now:
                self._logs[arrival.id] = RequestLog(arrival, self.scheduler.add(arrival, self.now))
                arrival = next(arrivals, None)
            elif done_at <= self.now:
                self._land()
            self._log(self.scheduler.expire(self.now))
            if self._free_at[0] <= self.now and self._in_flight < self._in_flight_limit:
                self._launch()
        return SimulationResult(self._logs, self._busy_s, started_at, self.now, self._batches)

    def _launch(self) -> None:
        """Hand a batch to stage 0 and work out when it passes every stage."""
        batch = self.scheduler.next_batch(self.now)
        if batch is None:
            return
        loads = [load_of(message) for message in batch.groups if message is not None]
        by_group = [self._reality.stage_seconds(load) for load in loads]
        factor = max(0.1, self._random.gauss(1.0, self._noise)) if self._noise else 1.0
        seconds = tuple(factor * max(stage) for stage in zip(*by_group, strict=True))
        at = self.now
        for stage, duration in enumerate(seconds):
            at = max(at, self._free_at[stage]) + duration
            self._free_at[stage] = at
            self._busy_s[stage] += duration
            at += self._hop_s
        heapq.heappush(self._flights, (at + self._control_s, batch.id, batch, seconds))
        self._in_flight += 1
        self._batches += 1

    def _land(self) -> None:
        _, _, batch, seconds = heapq.heappop(self._flights)
        self._in_flight -= 1
        self._log(self.scheduler.complete(results_of(batch, seconds), self.now))

    def _log(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, TokenEvent):
                self._logs[event.request_id].token_times.append(event.at)
            elif isinstance(event, FinishedEvent):
                self._logs[event.request_id].finished = event


def token_of(request_id: str, index: int) -> int:
    """The token a simulated model draws: a fixed function of request and index."""
    return (sum(request_id.encode()) * 31 + index * 7919) & 0x7FFF


def results_of(batch: Batch, stage_seconds: tuple[float, ...]) -> list[StepResult]:
    """What the last stages of all groups would send back."""
    return [
        StepResult(
            message.batch_id,
            group,
            tuple(
                SampledToken(span.request_id, span.index, token_of(span.request_id, span.index))
                for span in message.spans
                if span.sample
            ),
            stage_seconds,
        )
        for group, message in enumerate(batch.groups)
        if message is not None
    ]
