"""A controller that drains: real Ray actors, a tiny random model."""

import asyncio

import pytest

from medha_actors.bench.session import greedy, prompt_of
from medha_actors.messages import (
    Accepted,
    FinishedEvent,
    Rejected,
    Request,
    Resumed,
    TokenEvent,
    pack_tokens,
)

pytestmark = pytest.mark.usefixtures("cluster")

ARGUMENTS = {
    "model_loading_config": {
        "model_source": "random",
        "dtype": "float32",
        "max_model_len_tokens": 100_000,
    },
    "parallel": {"spp": 2},
    "actors": {"num_cpus": 0.5},
    "kv_cache": {"budget_bytes": 2**26, "page_tokens": 16},
    "predictor": {"calibrate": False},
}


def request(name: str, tokens: int, resumed: Resumed | None = None) -> Request:
    return Request(
        id=name,
        prompt_token_ids=pack_tokens(prompt_of(20)),
        sampling=greedy(tokens),
        resumed=resumed,
    )


async def begin(handle, asked: Request):
    """Submit, and wait for the first token; returns the request's further events."""
    events = handle.events(asked.id)
    assert isinstance(await handle.submit(asked), Accepted)
    async for event in events:
        if isinstance(event, TokenEvent):
            return events
    raise AssertionError("no token came")


async def ending(events) -> FinishedEvent:
    return [event async for event in events][-1]


async def test_a_drain_lets_finish_what_can_and_ends_the_rest(warm):
    async with warm.engine(ARGUMENTS) as handle:
        long = await begin(handle, request("long", 90_000))
        short = await begin(handle, request("short", 50))
        drained = asyncio.create_task(handle.drain(3.0))
        finished = await ending(short)
        assert finished.reason == "length"
        assert not handle.ready()
        refused = await handle.submit(request("late", 1))
        assert isinstance(refused, Rejected)
        assert (refused.status, refused.retry_after_s) == (503, 5.0)
        # What another controller had accepted, before it was lost, is let in.
        resumed = Resumed(token_ids=pack_tokens([7, 8]))
        assert (
            await ending(await begin(handle, request("resumed", 4, resumed)))
        ).reason == "length"
        unfinished = await ending(long)
        assert (unfinished.reason, unfinished.retry_after_s) == ("error", 5.0)
        assert await drained == 1


async def test_a_drain_ends_with_the_last_request(warm):
    async with warm.engine(ARGUMENTS) as handle:
        events = await begin(handle, request("only", 50))
        assert await handle.drain(600.0) == 0
        assert (await ending(events)).reason == "length"
        assert await handle.drain(600.0) == 0
