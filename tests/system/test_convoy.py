"""The convoy effect, and its end: short requests behind a 6,000-token prompt, under fcfs and under
lars."""

import asyncio
import time
from statistics import median

import aiohttp
import pytest
from serve_process import serving, shipped_args

LONG_TOKENS = 6000
SHORTS = 6


async def first_token_s(
    session: aiohttp.ClientSession, url: str, prompt: list[int]
) -> tuple[float, list[str]]:
    """TTFT, and the text of the whole answer."""
    body = {
        "model": "smollm2-135m-instruct",
        "prompt": prompt,
        "max_tokens": 4,
        "temperature": 0,
        "stream": True,
    }
    began, first, texts = time.perf_counter(), None, []
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        assert answer.status == 200
        async for line in answer.content:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter() - began
                texts.append(line.decode().split('"text":"')[1].split('"')[0])
    assert first is not None
    return first, texts


def short_prompt(number: int) -> list[int]:
    return [5 + (number * 31 + i * 17) % 1000 for i in range(60)]


async def convoy(url: str) -> tuple[list[float], list[list[str]]]:
    """A long prompt, and short ones arriving while it is prefilled, one after the other's first
    token at the latest."""
    long_prompt = [3 + (i * 7919) % 40_000 for i in range(LONG_TOKENS)]
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:
        await first_token_s(session, url, short_prompt(99))
        long = asyncio.create_task(first_token_s(session, url, long_prompt))
        shorts = []
        for number in range(SHORTS):
            await asyncio.wait({long}, timeout=0.3)
            shorts.append(asyncio.create_task(first_token_s(session, url, short_prompt(number))))
        done = await asyncio.gather(*shorts)
        return [ttft for ttft, _ in done], [texts for _, texts in done] + [(await long)[1]]


@pytest.mark.timeout(240)
async def test_short_requests_do_not_wait_behind_a_long_prompt(tmp_path):
    results = {}
    for policy in ("fcfs", "lars"):
        (tmp_path / policy).mkdir()
        args = shipped_args() | {"scheduler": {"policy": policy}}
        with serving(tmp_path / policy, **args) as (url, _):
            results[policy] = await convoy(url)
    slow, fast = median(results["fcfs"][0]), median(results["lars"][0])
    print(
        f"median TTFT of short requests: fcfs {slow:.2f} s, lars {fast:.3f} s, {slow / fast:.1f} "
        "times lower"
    )
    assert slow >= 10 * fast
    assert results["fcfs"][1] == results["lars"][1]  # the same tokens, the long prompt's too
