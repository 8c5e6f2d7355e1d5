"""A controller that drains: real Ray actors, a tiny random model. The rest is in
tests/engine_contract.py."""

import pytest

from medha_actors.actors.local import events_of, greedy, prompt_of
from medha_actors.messages import Request, pack_tokens

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


async def test_a_drain_ends_with_the_last_request(warm):
    async with warm.engine(ARGUMENTS) as handle:
        asked = Request(id="only", prompt_token_ids=pack_tokens(prompt_of(20)), sampling=greedy(50))
        events = await events_of(handle, asked)
        assert await handle.drain(600.0) == 0
        assert [event async for event in events][-1].reason == "length"
        assert await handle.drain(600.0) == 0
