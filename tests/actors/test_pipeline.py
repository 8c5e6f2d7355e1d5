"""Real Ray actors around a tiny random model: the same tokens through every grid, and after every
loss."""

import asyncio
import os
import signal

import msgspec
import pytest
import ray

from medha_actors.actors.local import engine, events_of, generate, greedy, prompt_of
from medha_actors.errors import EngineError
from medha_actors.messages import (
    FinishedEvent,
    Request,
    SamplingParams,
    TokenEvent,
    pack_tokens,
)

pytestmark = pytest.mark.usefixtures("cluster")


def arguments(spp: int = 1, kvp: int = 1, **scheduler):
    return {
        "model_loading_config": {"model_source": "random", "dtype": "float32"},
        "parallel": {
            "spp": spp,
            "kvp": kvp,
            "max_tokens_per_kvp_group": 48 if kvp > 1 else None,
        },
        "actors": {"num_cpus": 0.5},
        "scheduler": {"min_chunk_tokens": 16, "batch_budget_s": 0.002, **scheduler},
        "kv_cache": {"budget_bytes": 2**21, "page_tokens": 16},
        "predictor": {"calibrate": False},
    }


async def together(handle, lengths=(20, 130, 60), tokens=12):
    sampled = SamplingParams(max_tokens=tokens, temperature=1.0, seed=7)
    jobs = [
        generate(handle, prompt_of(n, salt=n), greedy(tokens) if n != 60 else sampled)
        for n in lengths
    ]
    return [result.tokens for result in await asyncio.gather(*jobs)]


@pytest.fixture(scope="module")
def expected(warm):
    async def run():
        async with warm.engine(arguments()) as handle:
            return await together(handle)

    return asyncio.run(run())


@pytest.mark.parametrize(("spp", "kvp"), [(2, 1), (3, 1), (1, 2), (2, 2)])
async def test_every_grid_gives_the_same_tokens(spp, kvp, expected, warm):
    async with warm.engine(arguments(spp, kvp)) as handle:
        assert await together(handle) == expected
        assert (await handle.stats())["kv_usage"] == 0


@pytest.mark.parametrize("policy", ["fcfs", "fcfs_chunked", "edf", "lrs"])
async def test_every_policy_gives_the_same_tokens(policy, expected, warm):
    async with warm.engine(arguments(2, policy=policy)) as handle:
        assert await together(handle) == expected


async def test_a_killed_stage_costs_nobody_a_token(warm):
    async with warm.engine(arguments(2)) as handle:
        cells = await warm.pids()
        undisturbed = await generate(handle, prompt_of(50), greedy(200))
        request = Request(
            id="victim",
            prompt_token_ids=pack_tokens(prompt_of(50)),
            sampling=greedy(200),
        )
        seen = []
        async for event in await events_of(handle, request):
            if isinstance(event, TokenEvent):
                seen.append(event.token_id)
            if len(seen) == 20:
                os.kill(cells[-1], signal.SIGKILL)
        assert isinstance(event, FinishedEvent)
        assert event.reason == "length"
        assert seen == undisturbed.tokens


async def test_a_killed_shard_costs_only_those_with_a_piece_there(warm):
    args = arguments(1, 2) | {"kv_cache": {"budget_bytes": 2**21, "page_tokens": 64}}
    args["parallel"]["max_tokens_per_kvp_group"] = 512  # both stay on one group
    async with warm.engine(args) as handle:
        cells = await warm.pids()
        undisturbed = await together(handle, (20, 30), 300)
        ids = ("first", "second")  # short requests, spread over the two groups
        streams = []
        for name, length in zip(ids, (20, 30), strict=True):
            request = Request(
                id=name,
                prompt_token_ids=pack_tokens(prompt_of(length, salt=length)),
                sampling=greedy(300),
            )
            streams.append(await events_of(handle, request))
        killed = False
        seen = {name: [] for name in ids}
        finished = {}

        async def follow(events):
            nonlocal killed
            async for event in events:
                if isinstance(event, TokenEvent):
                    seen[event.request_id].append(event.token_id)
                elif isinstance(event, FinishedEvent):
                    finished[event.request_id] = event
                if not killed and min(map(len, seen.values())) >= 10:
                    killed = True
                    os.kill(cells[0], signal.SIGKILL)

        await asyncio.gather(*map(follow, streams))
        assert [seen[name] for name in ids] == undisturbed
        assert sorted(finished[name].recomputed_tokens > 0 for name in ids) == [
            False,
            True,
        ]


async def test_a_cancelled_request_frees_its_pages(warm):
    async with warm.engine(arguments(2)) as handle:
        request = Request(
            id="gone",
            prompt_token_ids=pack_tokens(prompt_of(40)),
            sampling=greedy(1000),
        )
        async for event in await events_of(handle, request):
            if isinstance(event, TokenEvent):
                break
        await handle.cancel(request.id)
        # a later request is served, and then nothing is held
        await generate(handle, prompt_of(10), greedy(2))
        stats = await handle.stats()
        assert stats["running"] == stats["waiting"] == 0
        assert stats["kv_usage"] == 0


async def test_a_prompt_that_never_fits_is_refused_with_its_numbers(warm):
    async with warm.engine(arguments(1)) as handle:
        with pytest.raises(EngineError, match=r"\d+ tokens"):
            await generate(handle, prompt_of(200_000), greedy(1))


async def test_more_stages_than_the_cluster_has_cores_is_refused(cluster):
    args = msgspec.json.decode(msgspec.json.encode(arguments(4)))
    args["actors"] = {"num_cpus": 1000}
    free = ray.available_resources()["CPU"]
    with pytest.raises(Exception, match="need 4000 CPU, the cluster has 8"):
        async with engine(args):
            pass
    assert ray.available_resources()["CPU"] >= free
