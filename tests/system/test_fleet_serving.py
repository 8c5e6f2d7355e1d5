"""Two grids of one stage behind Serve: both serve, each is seen in /metrics, and the death of one
loses no request."""

import asyncio
import os
import re
import signal

import aiohttp
import pytest
from serve_process import serving

from tests.chaos import fuzz
from tests.processes import stage_pids

ARGS = fuzz.MODEL | {
    "model_loading_config": fuzz.MODEL["model_loading_config"]
    | {"max_model_len_tokens": 8_000},
    "parallel": {"spp": 1},
    "fleet": {"num_grids": 2},
}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("fleet"), **ARGS) as (url, pid):
        yield url, pid


async def complete(session, url, number, tokens=20):
    body = {
        "model": ARGS["model_loading_config"].get("model_id", "smollm2-135m-instruct"),
        "prompt": [number + 1] * 200,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
    }
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        told = await answer.json()
        assert answer.status == 200, told
        return told["usage"]["completion_tokens"]


async def test_both_grids_serve_and_are_told_apart(fleet):
    url, _ = fleet
    async with aiohttp.ClientSession() as session:
        counts = await asyncio.gather(*[complete(session, url, n) for n in range(24)])
        assert counts == [20] * 24
        async with session.get(f"{url}/metrics") as answer:
            page = await answer.text()
    generated = re.findall(
        r'^medha_generation_tokens_total{.*grid="([^"]+)".*} (\S+)$', page, re.M
    )
    assert len(generated) == 2
    assert min(float(count) for _, count in generated) > 0
    assert sum(float(count) for _, count in generated) == 480


async def test_a_stage_that_dies_loses_no_request_of_either_grid(fleet):
    url, pid = fleet
    async with aiohttp.ClientSession() as session:
        asking = [
            asyncio.ensure_future(complete(session, url, n, 200)) for n in range(8)
        ]
        await asyncio.wait(asking, timeout=0.2)
        os.kill(stage_pids(pid)[0], signal.SIGKILL)
        assert await asyncio.gather(*asking) == [200] * 8
