"""The grid in simulated time, under the very scheduler of the product.

Stages work in order and one batch at a time; a batch occupies a stage as long as its slowest group
takes there (the groups move in step). Only three kinds of event exist: a request arrives, stage 0
becomes free, a batch leaves the last stage. The times come from an ExecutionModel that stands for
reality: the scheduler's own or another, with noise.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import mul

from medha_actors.config import MedhaConfig
from medha_actors.core.batch import Batch
from medha_actors.core.group_load import GroupLoad, load_of
from medha_actors.core.kv_plan import Grid
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.scheduler import Scheduler
from medha_actors.messages import (
    Accepted,
    Event,
    FinishedEvent,
    Rejected,
    Request,
    SampledToken,
    StepResult,
    TokenEvent,
)

# of a batch: launched at, prefill tokens, decode tokens, seconds in the slowest stage,
# sizes of its prefill chunks
Stamp = tuple[float, int, int, float, tuple[int, ...]]


NEVER = float("inf")


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
        if not self.token_times:
            return None
        return self.token_times[0] - self.request.arrived_at


@dataclass(slots=True)
class SimulationResult:
    """All requests by id; seconds each stage worked; when the last batch was done."""

    requests: dict[str, RequestLog]
    busy_s: list[float]
    started_at: float
    ended_at: float
    batches: int
    stamps: list[Stamp] = field(default_factory=list)

    @property
    def busy(self) -> list[float]:
        """Share of the time each stage worked, 0 to 1."""
        span_s = max(self.ended_at - self.started_at, 1e-12)
        return [seconds / span_s for seconds in self.busy_s]


class Simulation:
    """One run. `reality`: the model that times are taken from (None: the scheduler's own,
    uncorrected).

    `noise`: relative standard deviation of the time of a batch in a stage; `hop_s`, `hop_row_s`:
    from one stage to the next, fixed and per row; `control_s`: from the last stage through the
    scheduler to stage 0; `in_flight`: the most batches on their way (None: what the scheduler
    says); `record`: keep a stamp of every batch; `follow`: called with each request that ended,
    returns the one that its client sends next (a closed loop), or None; `refused`: the same with
    each request that was refused, for clients that come back.
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
        hop_row_s: float = 0.0,
        control_s: float = 0.0,
        in_flight: int | None = None,
        record: bool = False,
        follow: Callable[[RequestLog, float], Request | None] | None = None,
        refused: Callable[[RequestLog, float], Request | None] | None = None,
    ) -> None:
        self.scheduler = Scheduler(
            config.scheduler, config.objectives, config.cache_name, grid, model
        )
        self.now = 0.0
        self._reality = reality or model
        self._noise = noise
        self._random = random.Random(seed)
        self._hop_s = hop_s
        self._hop_row_s = hop_row_s
        self._control_s = control_s
        self._in_flight_limit = in_flight
        self._free_at = [
            0.0
        ] * grid.stages  # when each stage has done what it was given
        self._busy_s = [0.0] * grid.stages
        # they land in order
        self._flights: deque[tuple[float, Batch, tuple[float, ...]]] = deque()
        self._batches = 0
        self._logs: dict[str, RequestLog] = {}
        self._arrivals: list[tuple[float, int, Request]] = []
        self._follow = follow
        self._refused = refused
        self._serial = 0
        self._stamps: list[Stamp] | None = [] if record else None
        self._started_at = 0.0
        # stage 0 asked, and the scheduler had nothing: only an arrival or a landing changes that
        self._stuck = True

    def run(self, requests: Iterable[Request]) -> SimulationResult:
        """Serve requests, in order of arrival, to the end."""
        for request in requests:
            self.expect(request)
        self.begin()
        while self.next_at() < NEVER:
            self.step()
        return self.result()

    def expect(self, request: Request) -> None:
        """A request will arrive; not before the simulation's `now`."""
        heapq.heappush(self._arrivals, (request.arrived_at, self._serial, request))
        self._serial += 1

    def begin(self, at: float | None = None) -> None:
        """Start the clock at an instant; None: with the first arrival."""
        if at is None:
            at = self._arrivals[0][0] if self._arrivals else 0.0
        self.now = self._started_at = at

    def next_at(self) -> float:
        """When something happens next, as things stand; NEVER: nothing does."""
        done_at, arrival_at, launch_at = self._instants()
        return min(done_at, arrival_at, launch_at)

    def step(self) -> None:
        """Let happen what happens next."""
        done_at, arrival_at, launch_at = self._instants()
        if launch_at < done_at and launch_at < arrival_at:
            self.now = launch_at
            self._stuck = not self._launch()
            return
        self.now = min(done_at, arrival_at)
        if arrival_at <= self.now:
            self._arrive(heapq.heappop(self._arrivals)[2])
        else:
            self._land()
        wake_at = self.scheduler.next_wake(self.now)
        if wake_at is not None and wake_at <= self.now:
            self._log(self.scheduler.expire(self.now))
        self._stuck = False

    def result(self) -> SimulationResult:
        """What has come of it so far."""
        stamps = self._stamps or []
        return SimulationResult(
            self._logs, self._busy_s, self._started_at, self.now, self._batches, stamps
        )

    def _arrive(self, request: Request) -> None:
        log = RequestLog(request, self.scheduler.add(request, self.now))
        self._logs[request.id] = log
        if self._refused is not None and isinstance(log.answer, Rejected):
            again = self._refused(log, self.now)
            if again is not None:
                self.expect(again)

    def _instants(self) -> tuple[float, float, float]:
        """Of the next landing, arrival and launch."""
        flights = self._flights
        done_at = flights[0][0] if flights else NEVER
        arrival_at = self._arrivals[0][0] if self._arrivals else NEVER
        launch_at = NEVER
        if not self._stuck:
            limit = self._in_flight_limit or self.scheduler.in_flight_limit
            if len(flights) < limit:
                launch_at = max(self._free_at[0], self.now)
        return done_at, arrival_at, launch_at

    def _launch(self) -> bool:
        """Hand a batch to stage 0 and work out when it passes every stage; False: there is nothing
        to do."""
        batch = self.scheduler.next_batch(self.now)
        if batch is None:
            return False
        loads = [load_of(message) for message in batch.groups if message is not None]
        seconds = self._stage_seconds(loads)
        hop_s = self._hop_s
        if self._hop_row_s:
            hop_s += self._hop_row_s * max(load.rows for load in loads)
        at = self.now
        free_at = self._free_at
        busy_s = self._busy_s
        for stage, duration in enumerate(seconds):
            free = free_at[stage]
            free_at[stage] = at = (free if free > at else at) + duration
            busy_s[stage] += duration
            at += hop_s
        self._flights.append((at + self._control_s, batch, seconds))
        self._batches += 1
        if self._stamps is not None:
            sizes = chunk_sizes(batch)
            self._stamps.append(
                (
                    self.now,
                    batch.prefill_tokens,
                    batch.decode_tokens,
                    max(seconds),
                    sizes,
                )
            )
        return True

    def _stage_seconds(self, loads: list[GroupLoad]) -> tuple[float, ...]:
        """What a batch takes in every stage, whose groups move in step."""
        seconds = self._reality.stage_seconds(loads[0])
        if len(loads) > 1:
            by_group = [seconds]
            by_group += [self._reality.stage_seconds(load) for load in loads[1:]]
            seconds = tuple(map(max, *by_group))
        if self._noise:
            draw = self._random.gauss
            factors = [max(0.1, draw(1.0, self._noise)) for _ in seconds]
            seconds = tuple(map(mul, factors, seconds))
        return seconds

    def _land(self) -> None:
        _, batch, seconds = self._flights.popleft()
        self._log(self.scheduler.complete(results_of(batch, seconds), self.now))

    def _log(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, TokenEvent):
                self._logs[event.request_id].token_times.append(event.at)
            elif isinstance(event, FinishedEvent):
                log = self._logs[event.request_id]
                log.finished = event
                request = None if self._follow is None else self._follow(log, self.now)
                if request is not None:
                    self.expect(request)


def chunk_sizes(batch: Batch) -> tuple[int, ...]:
    """Tokens of each prefill chunk of a batch; what several groups share counts once."""
    sizes: list[int] = []
    for message in batch.groups:
        for span in message.spans if message is not None else ():
            tokens = span.stop - span.start
            if span.writes and (span.index == 0 or tokens > 1):
                sizes.append(tokens)
    return tuple(sizes)


def token_of(request_id: str, index: int) -> int:
    """The token a simulated model draws: a fixed function of request and index."""
    return (sum(request_id.encode()) * 31 + index * 7919) & 0x7FFF


def results_of(batch: Batch, stage_seconds: tuple[float, ...]) -> list[StepResult]:
    """What the last stages of all groups would send back."""
    results = []
    for group, message in enumerate(batch.groups):
        if message is None:
            continue
        tokens = []
        for span in message.spans:
            if span.sample:
                token_id = token_of(span.request_id, span.index)
                tokens.append(SampledToken(span.request_id, span.index, token_id))
        result = StepResult(
            batch_id=message.batch_id,
            group=group,
            tokens=tuple(tokens),
            stage_seconds=stage_seconds,
        )
        results.append(result)
    return results
