"""Elastic instances in simulated time: requests arrive, prefills end, teams step."""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from loadgen.errors import LoadgenError
from loadgen.records import PlannedRequest, RequestRecord, open_record
from loadgen.twin.clients import name_of
from loadgen.twin.elastic.cost import Costs, ElasticDeployment
from loadgen.twin.elastic.dispatcher import Dispatcher, Prefill, Running
from loadgen.twin.elastic.fleet import Answer, Fleet, Team, place
from loadgen.twin.replay import Played


class Use(NamedTuple):
    """What instances did from one instant to another."""

    instances: tuple[int, ...]
    starts_at: float
    ends_at: float
    what: str  # prefill, step, move


Watch = Callable[[Fleet, Use], None]


def play_elastic(
    deployment: ElasticDeployment,
    requests: Sequence[PlannedRequest],
    watch: Watch | None = None,
) -> Played:
    """Run an open-loop workload. `watch` is told of every use of instances when it is decided.
    Raises LoadgenError if the model or a request can never fit, or a request waits for another."""
    run = _Run(deployment, requests, watch)
    return run.play()


class _Run:
    def __init__(
        self,
        deployment: ElasticDeployment,
        requests: Sequence[PlannedRequest],
        watch: Watch | None,
    ) -> None:
        self._costs = Costs(deployment)
        self._fleet = Fleet(deployment.instances, self._costs.kv_tokens)
        self._dispatcher = Dispatcher(self._costs, self._fleet, deployment.patient)
        self._requests = requests
        self._watch = watch
        self._waiting: deque[PlannedRequest] = deque()
        self._running: list[Running] = []
        self._answers: dict[int, Answer] = {}
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._serial = 0
        self._busy_s = 0.0  # of all instances together
        self._batches = 0
        self._interrupted = 0
        self._check()

    def _check(self) -> None:
        room = self._fleet.room(range(len(self._fleet.reserved)))
        for request in self._requests:
            if request.after is not None:
                raise LoadgenError("elastic instances take no sessions")
            if place([request], room) is None:
                tokens = request.prompt_tokens + request.output_tokens
                raise LoadgenError(f"a request of {tokens:,} tokens never fits")

    def play(self) -> Played:
        """From the first arrival to the last token."""
        for request in self._requests:
            self._at(request.at or 0.0, self._waiting.append, request)
        events = self._events
        while events:
            self._now = events[0][0]
            while events and events[0][0] <= self._now:
                _, _, happen, subject = heapq.heappop(events)
                happen(subject)
            self._dispatch()
            for team in self._fleet.teams:
                self._step(team)
        records = [self._record(request) for request in self._requests]
        ended = [record.ended_at or 0.0 for record in records]
        duration_s = max(ended, default=0.0)
        span_s = max(
            duration_s - min([record.sent_at or 0.0 for record in records]), 1e-12
        )
        return Played(
            records=records,
            duration_s=duration_s,
            batches=self._batches,
            busy=[self._busy_s / span_s / len(self._fleet.reserved)],
            preemptions=self._interrupted,
            stamps=[],
        )

    def _at(
        self, instant: float, happen: Callable[[Any], None], subject: object
    ) -> None:
        """Things of one instant happen in the order in which they were decided."""
        heapq.heappush(self._events, (instant, self._serial, happen, subject))
        self._serial += 1

    def _dispatch(self) -> None:
        """Rounds until nobody more can begin."""
        while self._waiting:
            prefills = self._dispatcher.round(self._waiting, self._running, self._now)
            for source, target, starts_at, ends_at in self._dispatcher.moves:
                self._use((source, target), starts_at, ends_at, "move")
                self._at(ends_at, _nothing, None)
            self._dispatcher.moves.clear()
            if not prefills:
                return
            begun: set[int] = set()
            for prefill in prefills:
                begun |= {request.index for request in prefill.requests}
            for _ in begun:
                assert self._waiting.popleft().index in begun, (
                    "first come, first served"
                )
            for prefill in prefills:
                self._begin(prefill)

    def _begin(self, prefill: Prefill) -> None:
        answers = []
        for request, placement in zip(
            prefill.requests, prefill.placements, strict=True
        ):
            answers.append(self._fleet.begin(request, placement))
            self._answers[request.index] = answers[-1]
        held = self._fleet.prefill(prefill.team)
        self._interrupted += held
        running = Running(prefill, answers)
        self._running.append(running)
        self._use(tuple(prefill.team), prefill.starts_at, prefill.ends_at, "prefill")
        self._at(prefill.ends_at, self._prefilled, running)

    def _prefilled(self, running: Running) -> None:
        self._running.remove(running)
        for answer in running.answers:
            answer.take(self._now)
        self._fleet.prefilled(running.prefill.team, running.answers)

    def _step(self, team: Team) -> None:
        """Begin a step if the team is there and has nothing else to do."""
        instances = team.instances
        if (
            team.held
            or max([self._fleet.free_at[one] for one in instances]) > self._now
        ):
            return
        ends_at = self._now + self._costs.step_s(team.shares(), instances)
        self._use(tuple(instances), self._now, ends_at, "step")
        self._at(ends_at, self._stepped, tuple(team.answers))

    def _stepped(self, answers: tuple[Answer, ...]) -> None:
        for answer in answers:
            answer.take(self._now)
        ended = [answer for answer in answers if not answer.left]
        for answer in ended:
            self._dispatcher.learn(self._now - answer.token_times[0])
        if ended:
            self._fleet.finish(ended)

    def _use(
        self, instances: tuple[int, ...], starts_at: float, ends_at: float, what: str
    ) -> None:
        self._batches += what != "move"
        self._busy_s += len(instances) * (ends_at - starts_at)
        for instance in instances:
            self._fleet.free_at[instance] = ends_at
        if self._watch is not None:
            self._watch(self._fleet, Use(instances, starts_at, ends_at, what))

    def _record(self, planned: PlannedRequest) -> RequestRecord:
        """What its client would have seen."""
        answer = self._answers[planned.index]
        record = open_record(planned, "")
        at = planned.at or 0.0
        record.id = name_of(planned)
        record.answer = None
        record.scheduled_at = record.released_at = record.sent_at = (
            record.answered_at
        ) = at
        record.status = 200
        record.token_times = array("d", answer.token_times)
        record.usage_prompt_tokens = planned.prompt_tokens
        record.usage_completion_tokens = len(answer.token_times)
        record.ended_at = answer.token_times[-1]
        record.finish_reason = "length"
        return record


def _nothing(_: object) -> None:
    """Time has passed: teams may go on."""
