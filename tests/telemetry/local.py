"""A controller without Ray: the real scheduler, the real observer, and stages that answer at once
in made-up time."""

from collections import deque
from typing import Any

import msgspec
from stories import request

from medha_actors.actors.telemetry.observer import Observer
from medha_actors.actors.telemetry.reporter import Reporter
from medha_actors.config import MedhaConfig, load
from medha_actors.core.kv_plan import Grid
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.scheduler import Scheduler
from medha_actors.core.simulator import results_of
from medha_actors.messages import Accepted, Rejected, Resumed, StepResult
from medha_actors.telemetry.histogram import Family
from medha_actors.telemetry.reports import Asked, Snapshot, StepReport
from medha_actors.telemetry.timelines import Timeline


def copied(value: Any, kind: Any) -> Any:
    """What arrives at the other end."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=kind)


class LocalController:
    """Drive it with `add` and `run`; ask it as a replica asks the engine: it is a
    medha_actors.telemetry.reports.Reports, and every answer is a copy, as over Ray."""

    def __init__(
        self,
        stages: int = 2,
        groups: int = 1,
        pages: int = 4096,
        slots: int = 0,
        **sections: Any,
    ) -> None:
        self.config: MedhaConfig = load(
            {"model_loading_config": {"model_id": "toy"}, **sections}
        )
        grid = Grid(
            stages=stages,
            groups=groups,
            pages_per_group=pages,
            page_tokens=16,
            max_tokens_per_kvp_group=None,
            max_model_len_tokens=65_536,
            slots_per_group=slots,
        )
        model = ExecutionModel.analytic(
            stages, token_s=1e-4, step_s=2e-3, pair_s=1e-8, kv_s=1e-8
        )
        self.scheduler = Scheduler(
            self.config.scheduler,
            self.config.objectives,
            self.config.cache_name,
            grid,
            model,
        )
        self.observer = Observer(self.config.telemetry, grid)
        self.now = 1_000.0
        self._reporter = Reporter(self.observer, self.scheduler, "toy")

    async def metrics(self) -> list[Family]:
        return copied(self._reporter.metrics(), list[Family])

    async def report(self, replica: str, families: list[Family]) -> None:
        self._reporter.report(replica, copied(families, list[Family]))

    async def find_timelines(self, name: str) -> list[Timeline]:
        return copied(self._reporter.find_timelines(name), list[Timeline])

    async def take_timelines(self, asked: Asked) -> list[Timeline]:
        return copied(self._reporter.take_timelines(asked), list[Timeline])

    async def last_timelines(
        self, count: int
    ) -> tuple[list[Timeline], list[StepReport]]:
        kind = tuple[list[Timeline], list[StepReport]]
        return copied(self._reporter.last_timelines(count), kind)

    async def snapshot(self, after: int, grid: str = "") -> Snapshot:
        return copied(self._reporter.snapshot(after, self.now), Snapshot)

    def add(
        self,
        name: str,
        prompt: int = 100,
        resumed: Resumed | None = None,
        tenant: str = "",
    ) -> Accepted | Rejected:
        asked = msgspec.structs.replace(
            request(name, prompt, self.now), resumed=resumed, tenant=tenant
        )
        answer = self.scheduler.add(asked, self.now)
        self.observer.answered(asked, answer, self.now)
        return answer

    def run(self, batches: int | None = None) -> None:
        """Up to so many batches, two in flight at a time; None: until nobody is left."""
        flying: deque = deque()
        while batches is None or batches > 0:
            batch = self.scheduler.next_batch(self.now)
            if batch is not None:
                self.observer.sent(batch, self.scheduler.record, self.now)
                flying.append((batch, self.now))
                batches = None if batches is None else batches - 1
            if batch is None and not flying:
                return
            if batch is None or len(flying) == 2:
                self._land(*flying.popleft())
        while flying:
            self._land(*flying.popleft())

    def _land(self, batch: Any, sent_at: float) -> None:
        seconds = (batch.predicted_s,) * self.scheduler.grid.stages
        self.now = max(self.now, sent_at + sum(seconds))
        starts = tuple(sent_at + s * batch.predicted_s for s in range(len(seconds)))
        results = [
            StepResult(
                r.batch_id,
                r.group,
                r.tokens,
                seconds,
                r.prompt_logprobs,
                starts,
                (0.0,) * len(seconds),
            )
            for r in results_of(batch, seconds)
        ]
        self.observer.done(results, self.now)
        self.observer.happened(self.scheduler.complete(results, self.now))
