"""A controller that drains: real Ray actors, a tiny random model. The rest is in
tests/engine_contract.py."""

import pytest

from medha_actors.actors.local import events_of, greedy, prompt_of
from medha_actors.messages import Request, pack_tokens
from tests.actors.warm import TWO_STAGES

pytestmark = pytest.mark.usefixtures("cluster")


async def test_a_drain_ends_with_the_last_request(warm):
    async with warm.engine(TWO_STAGES) as handle:
        asked = Request(
            id="only", prompt_token_ids=pack_tokens(prompt_of(20)), sampling=greedy(50)
        )
        events = await events_of(handle, asked)
        assert await handle.drain(600.0) == 0
        assert [event async for event in events][-1].reason == "length"
        assert await handle.drain(600.0) == 0
