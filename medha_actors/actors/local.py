"""A whole engine on this machine without the HTTP edge: Ray, controller, stage actors; and one
request through it. For what asks an engine directly: benchmarks, and tests of the actors."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import ray

from medha_actors.actors.controller import Controller
from medha_actors.actors.engine import RayEngine
from medha_actors.errors import EngineError
from medha_actors.messages import (
    Event,
    FinishedEvent,
    Rejected,
    Request,
    SamplingParams,
    TokenEvent,
    pack_tokens,
)

_numbers = itertools.count()


class Generation(msgspec.Struct):
    """What one request looked like from outside; instants are seconds since it was submitted."""

    tokens: list[int]
    token_times_s: list[float]
    cached_tokens: int = 0  # of the prompt

    @property
    def ttft_s(self) -> float:
        return self.token_times_s[0]

    @property
    def tokens_per_s(self) -> float:
        """Decode speed: tokens after the first, over the time they took."""
        return (len(self.tokens) - 1) / (self.token_times_s[-1] - self.token_times_s[0])


def start_ray() -> None:
    """A local Ray, with room for several engines beside each other."""
    if not ray.is_initialized():
        os.environ.setdefault("RAY_worker_niceness", "0")
        ray.init(
            num_cpus=max(4, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


@asynccontextmanager
async def engine(
    args: dict[str, Any], controller_class: type[Controller] = Controller
) -> AsyncIterator[RayEngine]:
    """Start Ray if need be, start a controller and its grid, wait until it serves; tear it down
    afterwards."""
    start_ray()
    actor_class: Any = ray.remote(controller_class)
    controller = actor_class.options(num_cpus=0, max_concurrency=1000).remote(args)
    handle = RayEngine(lambda: controller)
    try:
        await handle.start()
        yield handle
    finally:
        await handle.stop()
        await controller.stop.remote()
        ray.kill(controller)


async def events_of(handle: RayEngine, request: Request) -> AsyncIterator[Event]:
    """Submit a request; its events, to its end. Raises EngineError when it is refused."""
    mailbox: asyncio.Queue[Event] = asyncio.Queue()
    answer = await handle.submit(request, mailbox.put_nowait)
    if isinstance(answer, Rejected):
        raise EngineError(answer.message)
    return _emptied(mailbox)


async def _emptied(mailbox: asyncio.Queue[Event]) -> AsyncIterator[Event]:
    while True:
        event = await mailbox.get()
        yield event
        if isinstance(event, FinishedEvent):
            return


async def generate(
    handle: RayEngine,
    prompt: Sequence[int],
    sampling: SamplingParams,
    cache: bool = False,
) -> Generation:
    """Send one request and wait for its end; raises EngineError when it is refused or fails.

    `cache`: whether it may use what earlier ones have computed, and leave its own.
    """
    request = Request(
        id=f"bench-{next(_numbers)}",
        prompt_token_ids=pack_tokens(prompt),
        sampling=sampling,
        arrived_at=time.time(),
        cache=cache,
    )
    began = time.perf_counter()
    result = Generation([], [])
    async for event in await events_of(handle, request):
        if isinstance(event, TokenEvent):
            result.tokens.append(event.token_id)
            result.token_times_s.append(time.perf_counter() - began)
        elif isinstance(event, FinishedEvent):
            if event.reason not in ("stop", "length"):
                raise EngineError(event.message or event.reason)
            result.cached_tokens = event.cached_tokens
    return result


def greedy(max_tokens: int) -> SamplingParams:
    """Exactly `max_tokens` greedy tokens."""
    return SamplingParams(max_tokens=max_tokens, temperature=0.0)


def prompt_of(tokens: int, salt: int = 0) -> list[int]:
    """Varied token ids inside any vocabulary of 256 and more."""
    return [3 + (i * 7919 + salt * 104_729) % 251 for i in range(tokens)]
