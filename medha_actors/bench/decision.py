"""How long the scheduler thinks about one batch while many requests wait."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from itertools import count
from statistics import median
from typing import Any

from medha_actors.config import MedhaConfig, SchedulerConfig
from medha_actors.core.batch import Batch
from medha_actors.core.kv_plan import Grid
from medha_actors.core.orders import ORDERS
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.scheduler import Scheduler
from medha_actors.messages import (
    Event,
    FinishedEvent,
    Request,
    SampledToken,
    SamplingParams,
    StepResult,
    pack_tokens,
)
from medha_actors.quantities import Policy

_POLICIES = tuple(ORDERS)
_STAGE_S = 0.05
_PAGE_TOKENS = 64
_HISTORIES = 200
_HISTORY_TOKENS = 6000
_ASKED_TOKENS = 200  # of a prompt whose first token is foretold
_AT_ONCE = 10  # requests of one beginning that nobody has computed yet
# four in five are the histories': whatever is computed evicts something
_ROOM_PAGES = 25_000


def run(waiting: int = 1000, batches: int = 300) -> list[dict[str, Any]]:
    """Milliseconds per `next_batch`, `complete`, `add` and forecast, for every policy, with
    `waiting` mixed requests queued: first of which nobody begins like another, then turns of
    sessions."""
    rows = []
    for prompts, one in (("unlike", _unlike), ("shared", _shared)):
        for policy in _POLICIES:
            figures = one(policy, waiting, batches)
            rows.append(
                {"policy": policy, "prompts": prompts, "waiting": waiting, **figures}
            )
    return rows


def _unlike(policy: Policy, waiting: int, batches: int) -> dict[str, float]:
    """Nobody finishes and nobody comes: at first prefills start, then decodes fill the batches."""
    rng = random.Random(1)
    watch = _Watch(policy, waiting, pages=2**20)
    for number in range(waiting):
        tokens = (
            rng.randint(6000, 100_000) if number % 20 == 0 else rng.randint(20, 500)
        )
        watch.add(pack_tokens((number,)) + bytes(4 * (tokens - 1)), 100_000)
    watch.forget()
    for _ in range(batches):
        watch.step()
    return watch.figures()


def _shared(policy: Policy, waiting: int, batches: int) -> dict[str, float]:
    """Who finishes is replaced, so that always as many wait: 17 of 20 for a turn of a session whose
    history is cached, two for one of ten prompts with a new beginning, one for a long prefill that
    takes the room of what is cached."""
    watch = _Watch(policy, waiting, pages=_ROOM_PAGES)
    for history in range(_HISTORIES):
        watch.add(_beginning(history), 1)
        while watch.live:
            watch.step()
    turns = _turns(random.Random(1))
    while watch.live < waiting:
        watch.add(next(turns), 4)
    watch.forget()
    for _ in range(batches):
        for _ in range(watch.step()):
            watch.add(next(turns), 4)
    return watch.figures()


def _turns(rng: random.Random) -> Iterator[bytes]:
    """Prompts without an end, in a mix of three."""
    for number in count(_HISTORIES):
        if number % 20 == 0:
            yield _own(number, rng.randint(6000, 100_000))
        elif number % 20 in (7, 14):
            group = number // (10 * _AT_ONCE)
            yield _beginning(-1 - group) + _own(number, rng.randint(20, 500))
        else:
            yield _beginning(rng.randrange(_HISTORIES)) + _own(
                number, rng.randint(20, 500)
            )


def _beginning(number: int) -> bytes:
    return pack_tokens((2**24 + number,)) * _HISTORY_TOKENS


def _own(number: int, tokens: int) -> bytes:
    return pack_tokens((number,)) * tokens


class _Watch:
    """A scheduler whose calls are timed."""

    def __init__(self, policy: Policy, waiting: int, pages: int) -> None:
        config = MedhaConfig(
            scheduler=SchedulerConfig(
                policy=policy, max_waiting_requests=waiting + _HISTORIES
            )
        )
        grid = Grid(
            stages=2,
            groups=1,
            pages_per_group=pages,
            page_tokens=_PAGE_TOKENS,
            max_tokens_per_kvp_group=None,
            max_model_len_tokens=2**22,
        )
        model = ExecutionModel.analytic(
            2, token_s=1e-3, step_s=5e-3, pair_s=5e-7, kv_s=7e-6
        )
        self.live = 0
        self._scheduler = Scheduler(
            config.scheduler, config.objectives, config.cache_name, grid, model
        )
        self._now = 1e9
        self._names = count()
        self._hits = self._queries = 0
        self.forget()

    def forget(self) -> None:
        """What was measured so far."""
        self._seconds: dict[str, list[float]] = {
            "decision": [],
            "complete": [],
            "add": [],
            "forecast": [],
        }
        stats = self._scheduler.stats()
        self._hits = stats.prefix_cache_hits_total
        self._queries = stats.prefix_cache_queries_total

    def add(self, prompt: bytes, answer: int) -> None:
        """One more request waits."""
        request = Request(
            id=f"r{next(self._names)}",
            prompt_token_ids=prompt,
            sampling=SamplingParams(max_tokens=answer, temperature=0.0),
            arrived_at=self._now,
        )
        self._timed("add", lambda: self._scheduler.add(request, self._now))
        self.live += 1

    def step(self) -> int:
        """One batch from the decision to its results; how many requests it finished."""
        batch: Batch | None = self._timed(
            "decision", lambda: self._scheduler.next_batch(self._now)
        )
        assert batch is not None
        self._timed(
            "forecast", lambda: self._scheduler.waits((_ASKED_TOKENS,), "", self._now)
        )
        self._now += _STAGE_S
        message = batch.groups[0]
        assert message is not None
        drawn = tuple(
            SampledToken(span.request_id, span.index, 7)
            for span in message.spans
            if span.sample
        )
        results = [StepResult(batch.id, 0, drawn, (_STAGE_S, _STAGE_S))]
        events: list[Event] = self._timed(
            "complete", lambda: self._scheduler.complete(results, self._now)
        )
        ended = sum(isinstance(event, FinishedEvent) for event in events)
        self.live -= ended
        return ended

    def figures(self) -> dict[str, float]:
        """Milliseconds, and the share of prompt tokens that came from the cache."""
        decisions = sorted(self._seconds["decision"])
        stats = self._scheduler.stats()
        queries = stats.prefix_cache_queries_total - self._queries
        hits = stats.prefix_cache_hits_total - self._hits
        return {
            "decision_ms_p50": 1e3 * median(decisions),
            "decision_ms_p99": 1e3 * decisions[len(decisions) * 99 // 100],
            "complete_ms_p50": 1e3 * median(self._seconds["complete"]),
            "add_ms_p50": 1e3 * median(self._seconds["add"] or [0.0]),
            "forecast_ms_p50": 1e3 * median(self._seconds["forecast"]),
            "hit_rate": hits / max(1, queries),
        }

    def _timed(self, name: str, call: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        outcome = call()
        self._seconds[name].append(time.perf_counter() - began)
        return outcome
