"""Short requests while a long prompt is prefilled on the GPU: first come first served, and the
default policy; with real actors, without HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
from statistics import median
from typing import Any

import ray

from medha_actors.actors.engine import RayEngine
from medha_actors.actors.local import Generation, engine, generate, greedy, prompt_of
from medha_actors.bench.gpu_findings import Findings

_LONG = 300_000  # tokens
_SHORT = 200
_SHORTS = 30
_PAUSE_S = 0.1  # between short requests
_ENGINE_S = 35.0  # a start, a long prompt alone and one with short ones
_MODEL = {
    "layers": 8,
    "hidden": 2048,
    "heads": 32,
    "kv_heads": 8,
    "head_dim": 64,
    "intermediate": 8192,
    "vocabulary": 32_768,
}


def run(out: Findings) -> None:
    """Time to first token of the short ones and of the long one, under each policy."""
    ray.init(
        num_gpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    found = {}
    for policy in ("dboost", "fcfs"):
        if out.left_s() < _ENGINE_S:
            out.say(policy, "no time left")
            continue
        short_s, long_s = asyncio.run(_measure(policy))
        found[policy] = median(short_s)
        out.add(
            f"{policy}: short ones' first token, median", 1e3 * median(short_s), "ms"
        )
        out.add(f"{policy}: short ones' first token, longest", 1e3 * max(short_s), "ms")
        out.add(f"{policy}: the long one's first token", long_s, "s")
    if len(found) == 2:
        out.add(
            "fcfs over dboost, short ones' median",
            found["fcfs"] / found["dboost"],
            least=10,
        )
    ray.shutdown()


async def _measure(policy: str) -> tuple[list[float], float]:
    args: dict[str, Any] = {
        "model_loading_config": {
            "model_source": "random",
            "random": _MODEL,
            "dtype": "bfloat16",
            "max_model_len_tokens": 2**19,
        },
        "parallel": {"spp": 1},
        "actors": {"device": "cuda", "num_cpus": 1},
        "predictor": {"cache": False},
        "scheduler": {"policy": policy},
    }
    async with engine(args) as handle:
        await generate(handle, prompt_of(_SHORT, salt=-1), greedy(8))
        began = time.perf_counter()
        long = asyncio.create_task(generate(handle, prompt_of(_LONG), greedy(4)))
        short = [
            asyncio.create_task(_later(handle, number)) for number in range(_SHORTS)
        ]
        times = [one.ttft_s for one in await asyncio.gather(*short)]
        long_s = (await long).ttft_s
        print(policy, f"all in {time.perf_counter() - began:.1f} s", times, flush=True)
    return times, long_s


async def _later(handle: RayEngine, number: int) -> Generation:
    await asyncio.sleep(_PAUSE_S * (number + 1))
    return await generate(handle, prompt_of(_SHORT, salt=number + 1), greedy(8))
