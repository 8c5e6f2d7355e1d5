"""Overload in the twin: one kind of prompt at multiples of the capacity, and clients that come back
when they are told to.

Everybody asks for the first token within the same time. Goodput counts those who get it in time by
the instant at which they asked for the last time.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec

from loadgen.judge.latencies import percentile
from loadgen.judge.promises import TRUE
from loadgen.twin.deployment import Deployment
from loadgen.twin.hardware import hardware_of
from loadgen.twin.models import model_of
from loadgen.twin.options import scheduler_of
from loadgen.workload.arrivals import arrival_times
from medha_actors.core.simulator import RequestLog, SimulationResult
from medha_actors.messages import (
    TOKEN_BYTES,
    Accepted,
    Objectives,
    Rejected,
    Request,
    SamplingParams,
    pack_tokens,
)


class Flood(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent for `seconds`, at `load` times the capacity, and how it is admitted. `returns`:
    of those who are refused, how often one comes back."""

    policy: str
    late: str
    prompt_tokens: int
    load: float
    output_tokens: int = 32
    within_s: float = 1.0
    seconds: float = 15.0
    returns: int = 0
    seed: int = 0
    noise: float = 0.03


class Flooded(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it; rates per second of the flood, shares from 0 to 1."""

    capacity: float
    goodput: float
    accepted: float
    refused: float
    true: float  # of the accepted, announced within TRUE
    late: float  # of the accepted, that came later than 1.25 times what was announced
    in_time: float  # of the accepted
    came_back: int  # requests that returned after Retry-After
    returned_in_time: float  # of them
    retry_p50_s: float
    tbt_p99_s: float


def deployment_of(flood: Flood) -> Deployment:
    """The convoy's: SmolLM2 on two cores."""
    return Deployment(
        model=model_of("smollm2-135m"),
        device=hardware_of("cpu-2core"),
        spp=2,
        max_model_len=8192,
        tpot_s=0.15,
        noise=flood.noise,
        seed=flood.seed,
        scheduler=scheduler_of(flood.policy, {"admission": {"late": flood.late}}),
    )


def capacity_of(flood: Flood, count: int = 60) -> float:
    """Requests a second when there is always something to do."""
    idle = msgspec.structs.replace(flood, policy="fcfs_chunked", late="accept")
    requests = [_request(flood, index, 0.0, Objectives()) for index in range(count)]
    result = deployment_of(idle).simulation().run(requests)
    return count / (result.ended_at - result.started_at)


def play_flood(flood: Flood, capacity: float) -> Flooded:
    """Send it and see."""
    rate = capacity * flood.load
    instants = arrival_times(rate, flood.seed)
    asked = Objectives(ttft_s=flood.within_s)
    requests = list[Request]()
    while (at := next(instants)) < flood.seconds:
        requests.append(_request(flood, len(requests), at, asked))

    def come_back(log: RequestLog, now: float) -> Request | None:
        name, _, tries = log.request.id.partition("+")
        assert isinstance(log.answer, Rejected)
        times = int(tries or 0)
        if times >= flood.returns or log.answer.retry_after_s is None:
            return None
        at = now + log.answer.retry_after_s
        return msgspec.structs.replace(
            log.request, id=f"{name}+{times + 1}", arrived_at=at
        )

    simulation = deployment_of(flood).simulation(refused=come_back)
    return _judged(flood, capacity, simulation.run(requests))


def _request(flood: Flood, index: int, at: float, asked: Objectives) -> Request:
    """Nobody's prompt is like another's."""
    own = pack_tokens((index + 1,))
    return Request(
        id=str(index),
        prompt_token_ids=own + bytes(TOKEN_BYTES * (flood.prompt_tokens - 1)),
        sampling=SamplingParams(max_tokens=flood.output_tokens, temperature=0.0),
        objectives=asked,
        arrived_at=at,
        cache=False,
    )


def _judged(flood: Flood, capacity: float, result: SimulationResult) -> Flooded:
    logs = list(result.requests.values())
    taken = [log for log in logs if isinstance(log.answer, Accepted)]
    retries = [
        log.answer.retry_after_s or 0.0
        for log in logs
        if isinstance(log.answer, Rejected)
    ]
    returned = [log for log in logs if "+" in log.request.id]
    good = [log for log in taken if _in_time(log, flood.within_s)]
    ratios = [
        _ttft_s(log) / log.answer.predicted_ttft_s
        for log in logs
        if isinstance(log.answer, Accepted)
    ]
    gaps: list[float] = []
    for log in taken:
        gaps += [later - sooner for sooner, later in pairwise(log.token_times)]
    low, high = TRUE
    seconds = max(flood.seconds, result.ended_at if flood.returns else 0.0)
    return Flooded(
        capacity=capacity,
        goodput=len(good) / seconds,
        accepted=len(taken) / seconds,
        refused=len(retries) / seconds,
        true=_share([low <= ratio <= high for ratio in ratios]),
        late=_share([ratio > high for ratio in ratios]),
        in_time=_share([_in_time(log, flood.within_s) for log in taken]),
        came_back=len(returned),
        returned_in_time=_share([_in_time(log, flood.within_s) for log in returned]),
        retry_p50_s=percentile(retries, 50),
        tbt_p99_s=percentile(gaps, 99),
    )


def _ttft_s(log: RequestLog) -> float:
    return float("inf") if log.ttft_s is None else log.ttft_s


def _in_time(log: RequestLog, within_s: float) -> bool:
    return _ttft_s(log) <= within_s


def _share(values: list[bool]) -> float:
    return sum(values) / len(values) if values else 0.0
