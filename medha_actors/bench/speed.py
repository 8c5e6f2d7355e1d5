"""Raw speed of the embedded model on this machine, through the whole engine, in several layouts,
alternated; and of another server's, if there is one, over HTTP."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

from medha_actors.actors.local import Generation, engine, generate, greedy, prompt_of
from medha_actors.bench.limits import measure
from medha_actors.bench.peer import open_peer
from medha_actors.config import ModelLoadingConfig
from medha_actors.messages import SamplingParams
from medha_actors.model.spec import load_spec
from medha_actors.model_spec import ModelSpec

PROMPTS = (128, 512, 2048, 7500)
BATCHES = (1, 4, 16)
_CONTEXT = 128
_OUTPUT = 65
# stages, threads of each
LAYOUTS = {"1 stage, 2 threads": (1, 2), "2 stages": (2, 1), "1 stage": (1, 1)}

Ask = Callable[[Sequence[int], SamplingParams], Awaitable[Generation]]


async def run(
    repeats: int = 3,
    dtype: str = "auto",
    layouts: tuple[str, ...] = tuple(LAYOUTS),
    peer: str | None = None,
) -> list[dict[str, Any]]:
    """One row per layout and column: median tokens/s and the share of the machine's limit. `peer`:
    the address of a server that is asked for the same in its turn."""
    spec = load_spec(ModelLoadingConfig())
    flops, read = measure(2)
    speeds: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for repeat in range(repeats):
        # one after the other: each is to have all cores
        for name in layouts:
            async with engine(_arguments(*LAYOUTS[name], dtype)) as handle:
                await _measure(partial(generate, handle), name, repeat, speeds)
        if peer is not None:
            async with open_peer(peer) as other:
                await _measure(other.generate, peer, repeat, speeds)
    return [
        {
            "layout": name,
            "what": what,
            "size": size,
            "tokens_per_s": median(values),
            "limit_share": _share(spec, what, size, median(values), flops, read),
        }
        for (name, what, size), values in speeds.items()
    ]


def _arguments(spp: int, threads: int, dtype: str) -> dict[str, Any]:
    return {
        "model_loading_config": {"model_source": "embedded", "dtype": dtype},
        "parallel": {"spp": spp},
        "actors": {"threads": threads, "spares": 0},
        "kv_cache": {"budget_bytes": 2**30},
    }


async def _measure(
    ask: Ask, name: str, repeat: int, speeds: dict[tuple[str, str, int], list[float]]
) -> None:
    """All columns once."""
    await ask(prompt_of(300), greedy(8))
    for tokens in PROMPTS:
        answer = await ask(prompt_of(tokens, salt=repeat), greedy(1))
        speeds[name, "prefill", tokens].append(tokens / answer.ttft_s)
    for batch in BATCHES:
        salt = repeat * BATCHES[-1]
        speeds[name, "decode", batch].append(await _decode(ask, batch, salt))


async def _decode(ask: Ask, batch: int, salt: int) -> float:
    """Output tokens/s of `batch` requests while all of them decode."""
    jobs = [
        ask(prompt_of(_CONTEXT, salt=salt + number), greedy(_OUTPUT))
        for number in range(batch)
    ]
    return sum([result.tokens_per_s for result in await asyncio.gather(*jobs)])


def _share(
    spec: ModelSpec,
    what: str,
    size: int,
    tokens_per_s: float,
    flops: float,
    read: float,
) -> float:
    """Of the matrix-product peak (prefill) or of the memory bandwidth at 2 bytes per weight
    (decode)."""
    weights = spec.layers * spec.layer_parameters
    if what == "prefill":
        attention = 4 * spec.layers * spec.heads * spec.head_dim * size / 2
        return tokens_per_s * (2 * weights + attention) / flops
    kv = 2 * spec.layers * spec.kv_heads * spec.head_dim * (_CONTEXT + _OUTPUT / 2)
    steps_per_s = tokens_per_s / size
    return (
        steps_per_s * 2 * (weights + spec.hidden * spec.vocabulary + size * kv) / read
    )
