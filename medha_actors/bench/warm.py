"""Warm turns while a cold prefill runs: how much longer they take than in an idle engine, and
whether the prefill loses more than their work."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from statistics import median
from typing import Any

from medha_actors.actors.engine import RayEngine
from medha_actors.actors.local import engine, generate, greedy, prompt_of

_HISTORY = 5700  # tokens of a turn that are cached
_NEW = 300  # and those that are not
_IDLE = 12  # turns that are measured in the idle engine
_MODEL = {"model_id": "smollm2-135m-instruct", "model_source": "embedded"}
# as in docs/configs/long_context.yaml
_LONG = {
    "model_loading_config": _MODEL
    | {"rope_scaling": {"rope_type": "yarn", "factor": 4.5}},
    "parallel": {"spp": 1, "kvp": 2, "max_tokens_per_kvp_group": 16384},
    "kv_cache": {"budget_bytes": 2**30},
    "actors": {"spares": 0},
}
_SHORT = {
    "model_loading_config": _MODEL,
    "parallel": {"spp": 1},
    "kv_cache": {"budget_bytes": 2**31},
    "actors": {"spares": 0},
}


async def run(repeats: int = 3) -> list[dict[str, Any]]:
    """Rows for a cold prefill of 7,500 tokens, `repeats` times, and for one of 32,000 on two KV
    groups: milliseconds to the first token of turns and of the prefill, alone and beside each
    other."""
    rows = await _measured(_SHORT, 7500, repeats)
    return [*rows, *await _measured(_LONG, 32_000, 1)]


async def _measured(
    args: dict[str, Any], cold_tokens: int, repeats: int
) -> list[dict[str, Any]]:
    history = prompt_of(_HISTORY)
    salts = itertools.count(1)

    def turn() -> list[int]:
        return [*history, *prompt_of(_NEW, salt=next(salts))]

    async with engine(args) as handle:
        await generate(handle, turn(), greedy(4), cache=True)
        alone = [await _ttft(handle, prompt_of(_NEW, next(salts))) for _ in range(5)]
        idle = [await _ttft(handle, turn(), cache=True) for _ in range(_IDLE)]
        cold_alone = []
        cold_beside = []
        beside: list[list[float]] = []
        for _ in range(repeats):
            cold_alone.append(await _ttft(handle, prompt_of(cold_tokens, next(salts))))
            seconds, turns = await _beside(
                handle, prompt_of(cold_tokens, next(salts)), turn, median(idle)
            )
            cold_beside.append(seconds)
            beside.append(turns)
    turns_s = list(itertools.chain.from_iterable(beside))
    given_s = median([len(turns) for turns in beside]) * median(idle)
    lost_s = median(cold_beside) - median(cold_alone) - given_s
    return [
        _row(cold_tokens, "a turn's new tokens alone", alone, ""),
        _row(cold_tokens, "turns, idle", idle, median(idle) / median(alone)),
        _row(cold_tokens, "turns, beside", turns_s, _last(turns_s) / _last(idle)),
        _row(cold_tokens, "cold prefill, alone", cold_alone, ""),
        _row(cold_tokens, "cold prefill, beside", cold_beside, ""),
        _row(cold_tokens, "of it beyond the turns' work", [lost_s], ""),
    ]


async def _beside(
    handle: RayEngine, cold: list[int], turn: Callable[[], list[int]], pause_s: float
) -> tuple[float, list[float]]:
    """Seconds of a cold prefill during which one turn comes after the other, and theirs."""
    prefill = asyncio.create_task(_ttft(handle, cold))
    turns = []
    await asyncio.sleep(pause_s)
    while not prefill.done():
        turns.append(await _ttft(handle, turn(), cache=True))
        await asyncio.sleep(pause_s)
    return await prefill, turns


async def _ttft(handle: RayEngine, prompt: list[int], cache: bool = False) -> float:
    answer = await generate(handle, prompt, greedy(2), cache=cache)
    return answer.ttft_s


def _last(seconds: list[float]) -> float:
    """P99, or the longest of fewer than a hundred."""
    return sorted(seconds)[len(seconds) * 99 // 100]


def _row(
    cold_tokens: int, what: str, seconds: list[float], ratio: float | str
) -> dict[str, Any]:
    """`ratio`: to the row before; of turns beside, P99 to P99."""
    return {
        "cold_tokens": cold_tokens,
        "what": what,
        "count": len(seconds),
        "ms_p50": 1e3 * median(seconds),
        "ms_p99": 1e3 * _last(seconds),
        "ratio": ratio,
    }
