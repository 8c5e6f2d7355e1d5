"""Two tenants on one machine in the twin: a modest one that sends less than its share, and a greedy
one that sends as much as it, or many times its own share.

Both send the same mix, each from a seed of its own; the modest one's arrivals are the same whatever
the other does. What has not ended when the modest one's arrivals do is cancelled for the greedy
one: its backlog would take long, and nobody is waiting for it any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from loadgen.judge.latencies import percentile
from loadgen.records import LONG, SHORT, PlannedRequest
from loadgen.twin.deployment import Deployment
from loadgen.twin.hardware import hardware_of
from loadgen.twin.models import model_of
from loadgen.twin.options import scheduler_of
from loadgen.twin.scenarios import Scenario
from loadgen.twin.scenarios import capacity_of as capacity_of_scenario
from loadgen.workload.arrivals import arrival_times
from loadgen.workload.mixes import Mix, synthetic, with_arrivals
from medha_actors.core.simulator import RequestLog, SimulationResult
from medha_actors.messages import (
    TOKEN_BYTES,
    Accepted,
    Objectives,
    Request,
    SamplingParams,
    pack_tokens,
)

MODEST = "modest"
GREEDY = "greedy"
TRUE = (
    0.8,
    1.25,
)  # an announcement is true if the first token comes within these multiples
_GREEDY_SEED = 7919


class Neighbours(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent, and how it is shared. `modest_load`, `times`: how many times its share, half of
    the capacity, the modest one sends, and the greedy one."""

    policy: str
    mix: Mix
    fair: bool = True
    modest_load: float = 0.75
    times: float = 0.75
    count: int = 200  # requests of the modest one
    late: str = "accept"
    most_advance_s: float | None = None  # None: the default
    weights: dict[str, float] = {}
    seed: int = 0
    noise: float = 0.03


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one tenant got: times to first token by class, shares of announcements that were true or
    late, and tokens a second (prompt and answer) while the modest one sent."""

    sent: int
    refused: int
    short_s: list[float]
    long_s: list[float]
    ratios: list[float]  # first tokens over what was announced
    tokens_per_s: float

    def short_p(self, percent: float) -> float:
        return percentile(self.short_s, percent)

    @property
    def true(self) -> float:
        return _share([TRUE[0] <= ratio <= TRUE[1] for ratio in self.ratios])

    @property
    def late(self) -> float:
        return _share([ratio > TRUE[1] for ratio in self.ratios])


def deployment_of(asked: Neighbours) -> Deployment:
    """SmolLM2 on two cores."""
    fairness: dict[str, Any] = {"enabled": asked.fair, "weights": asked.weights}
    if asked.most_advance_s is not None:
        fairness["most_advance_s"] = asked.most_advance_s
    scheduler = {
        "fairness": fairness,
        "admission": {"late": asked.late},
        "max_running_requests": 64,
    }
    return Deployment(
        model=model_of("smollm2-135m"),
        device=hardware_of("cpu-2core"),
        spp=2,
        max_model_len=8192,
        tpot_s=0.15,
        noise=asked.noise,
        seed=asked.seed,
        scheduler=scheduler_of(asked.policy, scheduler),
    )


def capacity_of(asked: Neighbours, count: int = 300) -> float:
    """Requests a second of the mix when there is always something to do."""
    requests = synthetic(asked.mix, count, asked.seed)
    return capacity_of_scenario(Scenario(deployment_of(asked), requests))


def play_neighbours(asked: Neighbours, capacity: float) -> dict[str, Outcome]:
    """By tenant."""
    rate = asked.modest_load * capacity / 2
    modest = _arriving(asked.mix, asked.count, rate, asked.seed)
    until = modest[-1].at or 0.0
    theirs = asked.times * capacity / 2
    greedy = _arriving(
        asked.mix, int(theirs * until) + 1, theirs, asked.seed + _GREEDY_SEED
    )
    requests = list(_requests(MODEST, modest, None)) + list(
        _requests(GREEDY, greedy, until)
    )
    result = deployment_of(asked).simulation().run(requests)
    kinds = {MODEST: modest, GREEDY: greedy}
    return {tenant: _outcome(tenant, kinds[tenant], result, until) for tenant in kinds}


def pooled(outcomes: Sequence[Outcome]) -> Outcome:
    """Of several seeds."""
    return Outcome(
        sent=sum([one.sent for one in outcomes]),
        refused=sum([one.refused for one in outcomes]),
        short_s=_joined([one.short_s for one in outcomes]),
        long_s=_joined([one.long_s for one in outcomes]),
        ratios=_joined([one.ratios for one in outcomes]),
        tokens_per_s=sum([one.tokens_per_s for one in outcomes]) / len(outcomes),
    )


def _joined(parts: Sequence[list[float]]) -> list[float]:
    values = list[float]()
    for part in parts:
        values += part
    return values


def _arriving(mix: Mix, count: int, rate: float, seed: int) -> list[PlannedRequest]:
    return with_arrivals(synthetic(mix, count, seed), arrival_times(rate, seed))


def _requests(
    tenant: str, planned: Sequence[PlannedRequest], until: float | None
) -> Iterator[Request]:
    """Nobody's prompt is like another's. `until`: when they are cancelled."""
    for one in planned:
        at = one.at or 0.0
        if until is not None and at >= until:
            return
        own = pack_tokens((2 * one.index + (tenant == GREEDY) + 1,))
        timeout_s = None if until is None else max(until - at, 1e-3)
        yield Request(
            id=f"{tenant}-{one.index}",
            prompt_token_ids=own + bytes(TOKEN_BYTES * (one.prompt_tokens - 1)),
            sampling=SamplingParams(max_tokens=one.output_tokens, temperature=0.0),
            objectives=Objectives(timeout_s=timeout_s),
            tenant=tenant,
            arrived_at=at,
            cache=False,
        )


def _outcome(
    tenant: str,
    planned: Sequence[PlannedRequest],
    result: SimulationResult,
    until: float,
) -> Outcome:
    logs: list[tuple[PlannedRequest, RequestLog]] = []
    for one in planned:
        log = result.requests.get(f"{tenant}-{one.index}")
        if log is not None:
            logs.append((one, log))
    first_s: dict[str, list[float]] = {SHORT: [], LONG: []}
    ratios = []
    tokens = 0
    for one, log in logs:
        if log.ttft_s is None or not isinstance(log.answer, Accepted):
            continue
        first_s[one.kind].append(log.ttft_s)
        ratios.append(log.ttft_s / log.answer.predicted_ttft_s)
        tokens += len([at for at in log.token_times if at <= until])
        if log.token_times[0] <= until:
            tokens += one.prompt_tokens
    return Outcome(
        sent=len(logs),
        refused=len([log for _, log in logs if not isinstance(log.answer, Accepted)]),
        short_s=first_s[SHORT],
        long_s=first_s[LONG],
        ratios=ratios,
        tokens_per_s=tokens / until,
    )


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0
