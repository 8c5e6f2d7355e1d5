"""Answers that are resumed in a real engine, from one client and from another replica's."""

import pytest
from test_pipeline import arguments

from medha_actors.bench.session import prompt_of
from medha_actors.messages import Request, SamplingParams, pack_tokens
from tests.resume_contract import check_resuming

pytestmark = pytest.mark.usefixtures("cluster")


async def test_resuming(warm) -> None:
    async with warm.engine(arguments(2)) as handle:
        for temperature in (0.0, 1.0):
            request = Request(
                id=f"t{temperature:g}",
                prompt_token_ids=pack_tokens(prompt_of(40)),
                sampling=SamplingParams(max_tokens=300, temperature=temperature, seed=5),
            )
            await check_resuming(handle, request)
        assert (await handle.stats())["kv_usage"] == 0
