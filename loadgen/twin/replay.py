"""From a workload to a simulation and from its result to a RunRecord, which the load generator
reports like a real one."""

from __future__ import annotations

import contextlib
import gc
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from loadgen.judge.isolated import Points, lengths_to_measure, monotone, predict
from loadgen.records import (
    UNSENT,
    PlannedRequest,
    RequestRecord,
    RunRecord,
    open_record,
)
from loadgen.twin.clients import Clients, name_of, succeeded
from loadgen.twin.deployment import Deployment
from medha_actors.core.simulator import RequestLog, SimulationResult, Stamp
from medha_actors.messages import Objectives, Rejected


class Played(msgspec.Struct, kw_only=True):
    """What a simulated deployment did with a workload; times in seconds after the start."""

    records: list[RequestRecord]
    duration_s: float
    batches: int
    busy: list[float]  # share of the time each stage of the busiest replica worked
    preemptions: int
    stamps: list[Stamp]


def play(
    deployment: Deployment,
    requests: Sequence[PlannedRequest],
    *,
    concurrency: int | None = None,
    asked: Mapping[int, Objectives] | None = None,
    **more: Any,
) -> Played:
    """Run a workload. Replicas take the requests in turn, each all turns of a session;
    `concurrency` (a closed loop) is that of all of them; `asked`: objectives by request index."""
    shares: list[list[PlannedRequest]] = [[] for _ in range(deployment.replicas)]
    for number, request in enumerate(requests):
        turn = request.turn
        shares[(turn.session if turn else number) % deployment.replicas].append(request)
    played = []
    for replica, share in enumerate(shares):
        if share:
            seeded = msgspec.structs.replace(deployment, seed=deployment.seed + replica)
            limit = (
                None
                if concurrency is None
                else max(1, concurrency // deployment.replicas)
            )
            played.append(_play_one(seeded, Clients(share, limit, asked), share, more))
    records: list[RequestRecord] = []
    for one in played:
        records += one.records
    records.sort(key=lambda record: record.index)
    busiest = max(played, key=lambda one: max(one.busy))
    return Played(
        records=records,
        duration_s=max(one.duration_s for one in played),
        batches=sum(one.batches for one in played),
        busy=busiest.busy,
        preemptions=sum(one.preemptions for one in played),
        stamps=busiest.stamps,
    )


def _play_one(
    deployment: Deployment,
    clients: Clients,
    requests: Sequence[PlannedRequest],
    more: dict[str, Any],
) -> Played:
    simulation = deployment.simulation(follow=clients.follow, **more)
    with no_collection():
        result = simulation.run(clients.start())
    logs = result.requests
    records = [record_of(planned, logs.get(name_of(planned))) for planned in requests]
    return Played(
        records=records,
        duration_s=max((record.ended_at or 0.0 for record in records), default=0.0),
        batches=result.batches,
        busy=_busy(result),
        preemptions=simulation.scheduler.stats().preemptions_total,
        stamps=result.stamps,
    )


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """A simulation makes millions of small objects and no cycles: the collector would only walk
    over them."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _busy(result: SimulationResult) -> list[float]:
    return result.busy if result.batches else [0.0]


def record_of(planned: PlannedRequest, log: RequestLog | None) -> RequestRecord:
    """What a client of the simulated server would have seen; without a log, it did not send this
    turn."""
    record = open_record(planned, "")
    record.id = name_of(planned)
    record.answer = None
    if log is None:
        record.error = UNSENT
        return record
    at = log.request.arrived_at
    record.scheduled_at = record.released_at = record.sent_at = record.answered_at = at
    if isinstance(log.answer, Rejected):
        record.status = log.answer.status
        record.error = log.answer.message
        record.ended_at = at
        return record
    record.status = 200
    record.announced_ttft_s = log.answer.predicted_ttft_s
    record.deadline_s = log.answer.ttft_objective_s
    record.token_times = array("d", log.token_times)
    record.usage_prompt_tokens = planned.prompt_tokens
    record.usage_completion_tokens = len(log.token_times)
    if log.finished is None:
        record.error = "never finished"
        return record
    record.ended_at = log.finished.finished_at
    record.cached_tokens = log.finished.cached_tokens
    record.finish_reason = log.finished.reason
    if not succeeded(log.finished):
        record.error = log.finished.message or log.finished.reason
    return record


def idle_points(deployment: Deployment, requests: Sequence[PlannedRequest]) -> Points:
    """TTFT on the idle twin at lengths spread over those of the workload, as the real command
    measures it."""
    points: Points = []
    for length in lengths_to_measure(
        [request.prompt_tokens for request in requests], count=9
    ):
        lone = PlannedRequest(index=0, prompt_tokens=length, output_tokens=1, at=0.0)
        record = play(
            msgspec.structs.replace(deployment, replicas=1, noise=0.0), [lone]
        ).records[0]
        if len(record.token_times):
            points.append((length, record.token_times[0]))
    return monotone(points)


def expect(records: Sequence[RequestRecord], points: Points) -> None:
    """Give every record its TTFT on the idle server, for normalised TTFT and relative
    objectives."""
    known: dict[int, float] = {}
    for record in records if points else ():
        if record.prompt_tokens not in known:
            known[record.prompt_tokens] = predict(points, record.prompt_tokens)
        record.isolated_ttft_s = known[record.prompt_tokens]


def run_of(
    deployment: Deployment,
    played: Played,
    points: Points,
    config: dict[str, Any],
    label: str,
) -> RunRecord:
    """The RunRecord that loadgen.show.results writes."""
    return RunRecord(
        records=played.records,
        duration_s=played.duration_s,
        config=config
        | {
            "model": deployment.model.name,
            "policy": deployment.scheduler.policy,
            "deployment": describe(deployment),
            "simulated_batches": played.batches,
            "stages_busy": [round(share, 4) for share in played.busy],
            "preemptions": played.preemptions,
        },
        label=label
        or f"{deployment.model.name} on {deployment.devices} {deployment.device.name}",
        simulated=True,
        isolated=points,
    )


def describe(deployment: Deployment) -> dict[str, Any]:
    """For config.yml."""
    return {
        "device": deployment.device.name,
        "devices": deployment.devices,
        "tp": deployment.tp,
        "spp": deployment.spp,
        "kvp": deployment.kvp,
        "replicas": deployment.replicas,
        "max_tokens_per_kvp_group": deployment.cutoff if deployment.kvp > 1 else None,
        "kv_tokens_per_group": deployment.kv_tokens,
        "tpot_s": deployment.tpot_s,
        "prefix_cache": deployment.prefix_cache,
        "host_bytes": deployment.host_bytes,
        "scheduler": msgspec.to_builtins(deployment.scheduler),
    }


def longest_of(requests: Sequence[PlannedRequest]) -> int:
    """Tokens of the longest request, prompt and answer."""
    return max(request.prompt_tokens + request.output_tokens for request in requests)
