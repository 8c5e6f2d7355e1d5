"""The scripted engine keeps the contract that the real one keeps (test_resume_actors.py)."""

import asyncio

from medha_actors.messages import Request, SamplingParams, pack_tokens
from tests.fakes import FakeEngine, saying
from tests.resume_contract import check_resuming


async def test_resuming() -> None:
    async def slowly(request: Request):
        async for event in saying(range(20))(request):
            for _ in range(20):
                await asyncio.sleep(0)
            yield event

    prompt = pack_tokens([1, 2, 3])
    sampling = SamplingParams(max_tokens=20)
    await check_resuming(
        FakeEngine(slowly), Request(id="r", prompt_token_ids=prompt, sampling=sampling)
    )
