"""What the prefix cache saves, and what it costs: warm turns against cold ones on the real engine,
prompts that share nothing with it and without it, and the price of keys and lookups."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from medha_actors.actors.engine import RayEngine
from medha_actors.actors.local import engine, generate, greedy, prompt_of
from medha_actors.core.kv_plan import Grid, KvPlan
from medha_actors.core.page_keys import PageKeys, root_key
from medha_actors.core.request import Milestones, RequestState
from medha_actors.messages import TOKEN_BYTES, Request, pack_tokens

_TURN = 7500  # tokens of a turn's prompt
_CACHED = 7400  # those that are the history of the turns before
_PAGE_TOKENS = 64
_LONG = 1_000_000
# prompts that share nothing, at once and in a round; tokens of each
_UNSHARED = 8
_UNSHARED_TOKENS = 512
_UNSHARED_ROUNDS = 4  # for each repeat
_UNSHARED_BYTES = 2**28  # some 11,000 tokens
_UNSHARED_FILL = 24  # prompts before that


async def run(repeats: int = 3, dtype: str = "bfloat16") -> list[dict[str, Any]]:
    """Rows: time to first token of a cold turn, of a warm one, and of the warm one's uncached
    tokens alone; throughput of prompts that share nothing, without the cache and with it; then
    microseconds for each page of making keys, looking up and sharing."""
    turns = await _turns(repeats, dtype)
    return [*turns, *await _unshared(repeats, dtype), *_costs(_LONG)]


def _arguments(dtype: str, budget_bytes: int = 2**31) -> dict[str, Any]:
    return {
        "model_loading_config": {"model_source": "embedded", "dtype": dtype},
        "parallel": {"spp": 1},
        "actors": {"spares": 0},
        "kv_cache": {"page_tokens": _PAGE_TOKENS, "budget_bytes": budget_bytes},
    }


async def _turns(repeats: int, dtype: str) -> list[dict[str, Any]]:
    found: dict[str, list[float]] = {"cold": [], "warm": [], "uncached alone": []}
    shares: dict[str, list[float]] = {name: [] for name in found}
    async with engine(_arguments(dtype)) as handle:
        await generate(handle, prompt_of(64), greedy(4))
        for repeat in range(repeats):
            history = prompt_of(_CACHED, salt=repeat)
            rest = prompt_of(_TURN - _CACHED, salt=1000 + repeat)
            again = prompt_of(_TURN - _CACHED, salt=2000 + repeat)
            for name, prompt in (
                ("cold", [*history, *rest]),
                ("warm", [*history, *again]),
                ("uncached alone", rest),
            ):
                answer = await generate(
                    handle, prompt, greedy(4), cache=name != "uncached alone"
                )
                found[name].append(answer.ttft_s)
                shares[name].append(answer.cached_tokens / len(prompt))
    cold_s = median(found["cold"])
    return [
        _row(
            name,
            "ms to first token",
            1e3 * median(seconds),
            median(seconds) / cold_s,
            median(shares[name]),
        )
        for name, seconds in found.items()
    ]


async def _unshared(repeats: int, dtype: str) -> list[dict[str, Any]]:
    """Rounds of prompts that begin with unlike tokens, alternated, in a cache that is full, so that
    something is evicted for each; the ratio is the median of the rounds' own."""
    speeds: dict[bool, list[float]] = {False: [], True: []}
    salts = itertools.count()
    async with engine(_arguments(dtype, _UNSHARED_BYTES)) as handle:
        for _ in range(_UNSHARED_FILL):
            await generate(handle, _own_prompt(next(salts)), greedy(4), cache=True)
        for number in range(repeats * _UNSHARED_ROUNDS):
            first = number % 2 == 0  # who goes first takes turns
            for cache in (first, not first):
                prompts = [_own_prompt(next(salts)) for _ in range(_UNSHARED)]
                speeds[cache].append(await _speed(handle, prompts, cache))
    pairs = zip(speeds[True], speeds[False], strict=True)
    ratio = median([with_it / without for with_it, without in pairs])
    unit = "tokens/s"
    return [
        _row("nothing shared, no cache", unit, median(speeds[False]), None, None),
        _row("nothing shared, cached", unit, median(speeds[True]), ratio, None),
    ]


async def _speed(handle: RayEngine, prompts: Sequence[list[int]], cache: bool) -> float:
    """Prompt tokens/s of these prompts at once."""
    began = time.perf_counter()
    jobs = [generate(handle, prompt, greedy(8), cache) for prompt in prompts]
    await asyncio.gather(*jobs)
    return sum(map(len, prompts)) / (time.perf_counter() - began)


def _own_prompt(number: int) -> list[int]:
    """Of which no other's first page has the tokens."""
    start = [3 + number % 200, 3 + number // 200]
    return [*start, *prompt_of(_UNSHARED_TOKENS - len(start))]


def _costs(tokens: int) -> list[dict[str, Any]]:
    """Of one prompt: cold (one key until the first miss), then kept, then found whole."""
    pages = tokens // _PAGE_TOKENS
    plan = KvPlan(
        Grid(
            stages=1,
            groups=1,
            pages_per_group=2 * pages,
            page_tokens=_PAGE_TOKENS,
            max_tokens_per_kvp_group=None,
            max_model_len_tokens=2 * tokens,
        )
    )
    packed = pack_tokens(range(tokens))
    rows = []
    for name in ("cold", "warm"):
        state = _state(packed)
        assert state.keys is not None
        began = time.perf_counter()
        hits = plan.search.hits(state.keys, state.hit_limit)
        rows.append(_cost(f"{name} lookup, keys made", began, tokens))
        began = time.perf_counter()
        hits = plan.search.hits(state.keys, state.hit_limit)
        rows.append(_cost(f"{name} lookup again", began, tokens))
        pieces = plan.place(tokens, [0], [0], *hits)
        assert pieces is not None
        state.dispatched = state.computed = hits[0].tokens if hits else 0
        plan.reserve(state, pieces)
        plan.take(state, tokens)
        state.computed = tokens
        began = time.perf_counter()
        plan.publish(state)
        rows.append(_cost(f"{name} publish", began, tokens))
        began = time.perf_counter()
        plan.release(state)
        rows.append(_cost(f"{name} release", began, tokens))
    return rows


def _state(packed: bytes) -> RequestState:
    tokens = len(packed) // TOKEN_BYTES
    state = RequestState(
        request=Request(id="long", prompt_token_ids=packed, sampling=greedy(1)),
        serial=0,
        milestones=Milestones(0.0, 0.0),
        tpot_s=1.0,
        timeout_at=0.0,
        prompt=tokens,
        goal=tokens,
    )
    state.keys = PageKeys(root_key("model", "", ""), _PAGE_TOKENS, state.tokens)
    return state


def _cost(name: str, began: float, tokens: int) -> dict[str, Any]:
    milliseconds = 1e3 * (time.perf_counter() - began)
    return _row(f"{name}, {tokens:,} tokens", "ms", milliseconds, None, None)


def _row(
    name: str, unit: str, value: float, ratio: float | None, share: float | None
) -> dict[str, Any]:
    return {
        "what": name,
        "unit": unit,
        "value": value,
        "ratio": "" if ratio is None else ratio,
        "cached": "" if share is None else share,
    }
