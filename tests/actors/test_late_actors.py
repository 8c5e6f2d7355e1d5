"""Real actors that launch their steps ahead, as on GPUs: the same tokens, also after a death."""

import asyncio
import os
import signal
import time

import pytest

from medha_actors.actors.local import events_of, generate, greedy, prompt_of
from medha_actors.messages import Request, TokenEvent, pack_tokens
from tests.actors.warm import TWO_STAGES
from tests.late import LateStage


async def _generations(handle):
    alone = await generate(handle, prompt_of(700), greedy(40))
    many = [
        generate(handle, prompt_of(100 + 50 * salt, salt), greedy(30))
        for salt in range(6)
    ]
    found = await asyncio.gather(*many)
    return [alone.tokens, *[one.tokens for one in found]]


@pytest.mark.parametrize("kvp", [1, 2])
async def test_launching_ahead_changes_no_token(warm, kvp):
    parallel = {
        "spp": 2,
        "kvp": kvp,
        "max_tokens_per_kvp_group": 200 if kvp > 1 else None,
    }
    args = {**TWO_STAGES, "parallel": parallel}
    async with warm.engine(args) as handle:
        expected = await _generations(handle)
    async with warm.engine(args, LateStage) as handle:
        assert await _generations(handle) == expected
        stats = await handle.stats()
        assert stats["running"] == stats["waiting"] == stats["kv_usage"] == 0


async def test_a_death_while_steps_are_launched_ahead_costs_no_token(warm):
    async with warm.engine(TWO_STAGES) as handle:
        expected = (await generate(handle, prompt_of(700), greedy(60))).tokens
    async with warm.engine(TWO_STAGES, LateStage) as handle:
        request = Request(
            id="r",
            prompt_token_ids=pack_tokens(prompt_of(700)),
            sampling=greedy(60),
            arrived_at=time.time(),
        )
        tokens = []
        async for event in await events_of(handle, request):
            if isinstance(event, TokenEvent):
                tokens.append(event.token_id)
                if len(tokens) == 20:
                    os.kill((await warm.pids())[1], signal.SIGKILL)
        assert tokens == expected
