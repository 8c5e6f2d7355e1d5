"""How long the scheduler thinks about one batch while many requests wait."""

from __future__ import annotations

import random
import time
from statistics import median
from typing import Any

from medha_actors.config import MedhaConfig, Policy, SchedulerConfig
from medha_actors.core.kv_plan import Grid
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.scheduler import Scheduler
from medha_actors.messages import (
    Request,
    SampledToken,
    SamplingParams,
    StepResult,
    pack_tokens,
)

_POLICIES: tuple[Policy, ...] = ("fcfs", "fcfs_chunked", "edf", "lrs", "lars")
_STAGE_S = 0.05


def run(waiting: int = 1000, batches: int = 300) -> list[dict[str, Any]]:
    """Milliseconds per `next_batch` and per `complete`, for every policy, with `waiting` mixed
    requests queued."""
    return [
        {"policy": policy, "waiting": waiting, **_one(policy, waiting, batches)}
        for policy in _POLICIES
    ]


def _one(policy: Policy, waiting: int, batches: int) -> dict[str, float]:
    rng = random.Random(1)
    config = MedhaConfig(scheduler=SchedulerConfig(policy=policy, max_waiting_requests=waiting))
    grid = Grid(
        stages=2,
        groups=1,
        pages_per_group=2**20,
        page_tokens=64,
        max_tokens_per_kvp_group=None,
        max_model_len_tokens=2**22,
    )
    model = ExecutionModel.analytic(2, token_s=1e-3, step_s=5e-3, pair_s=5e-7, kv_s=7e-6)
    scheduler = Scheduler(config, grid, model)
    now = 1e9
    for number in range(waiting):
        tokens = rng.randint(6000, 100_000) if number % 20 == 0 else rng.randint(20, 500)
        sampling = SamplingParams(max_tokens=100_000, temperature=0.0)
        scheduler.add(
            Request(
                id=f"r{number}",
                prompt_token_ids=pack_tokens((number,)) + bytes(4 * (tokens - 1)),
                sampling=sampling,
                arrived_at=now,
            ),
            now,
        )
    decisions = []
    completions = []
    for _ in range(batches):
        began = time.perf_counter()
        batch = scheduler.next_batch(now)
        decisions.append(time.perf_counter() - began)
        assert batch is not None
        now += _STAGE_S
        message = batch.groups[0]
        assert message is not None
        drawn = tuple(
            SampledToken(span.request_id, span.index, 7) for span in message.spans if span.sample
        )
        began = time.perf_counter()
        scheduler.complete([StepResult(batch.id, 0, drawn, (_STAGE_S, _STAGE_S))], now)
        completions.append(time.perf_counter() - began)
    decisions.sort()
    return {
        "decision_ms_p50": 1e3 * median(decisions),
        "decision_ms_p99": 1e3 * decisions[len(decisions) * 99 // 100],
        "complete_ms_p50": 1e3 * median(completions),
    }
