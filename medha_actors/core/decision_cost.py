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


class _Crowd:
    """A scheduler with requests in it, in simulated time; `clock` tells what its decisions take."""

    def __init__(
        self, clock: Callable[[], float], policy: Policy, stages: int, groups: int
    ) -> None:
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
        self.scheduler = Scheduler(
            config.scheduler, config.objectives, config.cache_name, grid, model
        )
        self._clock = clock
        self._now = 0.0
        self._numbers = itertools.count()

    def add(self, name: str, prompt: int, output: int) -> None:
        """A request with so many tokens."""
        first = pack_tokens((next(self._numbers),))  # nobody begins like another
        request = Request(
            id=name,
            prompt_token_ids=first + bytes(len(first) * (prompt - 1)),
            sampling=SamplingParams(max_tokens=output),
            arrived_at=self._now,
        )
        self.scheduler.add(request, self._now)

    def step(self) -> float:
        """One batch comes and goes; seconds that the clock counts for the decision."""
        before = self._clock()
        batch = self.scheduler.next_batch(self._now)
        seconds = self._clock() - before
        if batch is not None:
            self._now += batch.predicted_s
            results = results_of(batch, (batch.predicted_s,))
            self.scheduler.complete(results, self._now)
        return seconds


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
    crowd = _Crowd(clock, policy, stages, groups)
    for index in range(decoding):
        crowd.add(f"decoding-{index}", 64, 4096)
    while crowd.scheduler.live.queue:
        crowd.step()
    for index in range(waiting):
        prompt = 6000
        if index % 20:
            prompt = min(512, max(1, int(rng.lognormvariate(4.6, 0.6))))
        crowd.add(f"waiting-{index}", prompt, 4)
    return [crowd.step() for _ in range(decisions)]
