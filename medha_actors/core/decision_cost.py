"""What one scheduling decision costs: a benchmark without a clock of its own (pass
time.perf_counter)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

from medha_actors.config import MedhaConfig, SchedulerConfig
from medha_actors.core.kv_plan import Grid
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.scheduler import Scheduler
from medha_actors.core.simulator import results_of
from medha_actors.messages import Request, SamplingParams, pack_tokens
from medha_actors.quantities import Policy


def decision_seconds(
    clock: Callable[[], float],
    waiting: int = 1000,
    *,
    policy: Policy = "lars",
    decoding: int = 32,
    stages: int = 2,
    groups: int = 1,
    decisions: int = 200,
) -> list[float]:
    """Seconds of each of `decisions` calls of next_batch() with about `waiting` mixed requests
    queued.

    Prompts are lognormal around 100 tokens, one in twenty has 6,000; `decoding` requests decode
    beside them.
    """
    rng = random.Random(0)
    config = MedhaConfig(
        scheduler=SchedulerConfig(
            policy=policy, max_waiting_requests=10**6, max_running_requests=256
        )
    )
    grid = Grid(
        stages=stages,
        groups=groups,
        pages_per_group=10_000,
        page_tokens=64,
        max_tokens_per_kvp_group=4096,
        max_model_len_tokens=8192,
    )
    model = ExecutionModel.analytic(
        stages, token_s=8e-4, step_s=1e-2, pair_s=5e-7, kv_s=7e-6
    )
    scheduler = Scheduler(
        config.scheduler, config.objectives, config.cache_name, grid, model
    )
    now = 0.0
    numbers = itertools.count()

    def add(name: str, prompt: int, output: int) -> None:
        sampling = SamplingParams(max_tokens=output)
        first = pack_tokens((next(numbers),))  # nobody begins like another
        prompt_token_ids = first + bytes(len(first) * (prompt - 1))
        scheduler.add(
            Request(
                id=name,
                prompt_token_ids=prompt_token_ids,
                sampling=sampling,
                arrived_at=now,
            ),
            now,
        )

    def step() -> float:
        nonlocal now
        before = clock()
        batch = scheduler.next_batch(now)
        seconds = clock() - before
        if batch is not None:
            now += batch.predicted_s
            scheduler.complete(results_of(batch, (batch.predicted_s,)), now)
        return seconds

    for index in range(decoding):
        add(f"decoding-{index}", 64, 4096)
    while scheduler.live.queue:
        step()
    for index in range(waiting):
        prompt = 6000
        if index % 20:
            prompt = min(512, max(1, int(rng.lognormvariate(4.6, 0.6))))
        add(f"waiting-{index}", prompt, 4)
    return [step() for _ in range(decisions)]
