"""Does KV-cache parallelism pay? Time between tokens and chunk times at long contexts, K = 1 and K
= 2, alternated.

The real actors with the real layers and real links, and synthetic cache contents: a context of 128K
tokens needs no prefill that way. Steps are handed to the stage actors directly; there is no
scheduler in between (paper, 3.3).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from operator import itemgetter
from statistics import median
from typing import Any

import msgspec

from medha_actors.actors.cluster import Cluster
from medha_actors.actors.local import start_ray
from medha_actors.config import load
from medha_actors.messages import (
    Introduction,
    SamplingParams,
    Span,
    StepMessage,
    StepResult,
    pack_tokens,
)
from medha_actors.model.spec import load_spec

CONTEXTS = (2048, 8192, 32_768, 131_072)
LAYOUTS = {
    "K=1, 1 core": (1, 1, "auto"),
    "K=2, 1 core each": (2, 1, "auto"),
    "K=1, 2 threads (torch)": (1, 2, "sdpa"),
}
# tokens of context: beyond, torch alone would take most of an hour
_TORCH_MOST = 32_768
_PAGE_TOKENS = 64
_STEPS = 24
_CHUNK = 64
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(StepResult).decode


async def run(repeats: int = 3, dtype: str = "bfloat16") -> list[dict[str, Any]]:
    """Rows: context, layout, median milliseconds of a decode step and of a chunk of 64, ratios to K
    = 1 on one core.

    The exchange: microseconds a layer of a decode step in the group that waits least, so without
    waiting for the other.
    """
    start_ray()
    found: dict[tuple[int, str, str], list[float]] = {}
    swaps: dict[tuple[int, str], list[float]] = {}
    for repeat in range(repeats):
        # one after the other: each is to have all cores
        for name, layout in LAYOUTS.items():
            async with _grid(*layout, dtype) as grid:
                for context in CONTEXTS:
                    if context > _TORCH_MOST and layout[1] > 1:
                        continue
                    for what, rows, steps in (
                        ("decode", 1, _STEPS),
                        ("chunk", _CHUNK, 2),
                    ):
                        step = f"{what}-{repeat}-{context}"
                        seconds, swap = await asyncio.to_thread(
                            _steps, grid, step, context, rows, steps
                        )
                        found.setdefault((context, name, what), []).append(seconds)
                        if what == "decode":
                            swaps.setdefault((context, name), []).append(
                                1e6 * swap / grid.spec.layers
                            )
    return [
        {
            "context": context,
            "layout": name,
            **{
                f"{what}_ms": 1e3 * median(found[context, name, what])
                for what in ("decode", "chunk")
            },
            **{
                f"{what}_ratio": _ratio(found, context, name, what)
                for what in ("decode", "chunk")
            },
            "exchange_us_per_layer": median(swaps[context, name]),
        }
        for context, name in sorted(swaps, key=itemgetter(0))
    ]


def _ratio(
    found: dict[tuple[int, str, str], list[float]], context: int, name: str, what: str
) -> float:
    one = found[context, next(iter(LAYOUTS)), what]
    return median(
        mine / theirs
        for mine, theirs in zip(found[context, name, what], one, strict=True)
    )


@asynccontextmanager
async def _grid(
    groups: int, threads: int, attention: str, dtype: str
) -> AsyncIterator[Cluster]:
    """A linked grid of one stage, its caches full of noise."""
    config = load(
        {
            "model_loading_config": {"model_source": "embedded", "dtype": dtype},
            "parallel": {"spp": 1, "kvp": groups},
            "actors": {
                "device": "cpu",
                "threads": threads,
                "attention": attention,
                "num_cpus": 0.5,
            },
            "kv_cache": {
                "page_tokens": _PAGE_TOKENS,
                "budget_bytes": _bytes_per_token(dtype)
                * (max(CONTEXTS) // groups + 4096),
            },
        }
    )
    cluster = await Cluster.start(config)
    await cluster.fill(cluster.pages)
    await cluster.link()
    try:
        yield cluster
    finally:
        cluster.stop()


def _bytes_per_token(dtype: str) -> int:
    spec = load_spec(load({"parallel": {}}).model_loading_config)
    return (
        2
        * spec.layers
        * spec.kv_heads
        * spec.head_dim
        * (2 if dtype == "bfloat16" else 4)
    )


def _steps(
    grid: Cluster, name: str, context: int, rows: int, steps: int
) -> tuple[float, float]:
    """Median seconds of a step of `rows` new tokens at `context`, the cache in equal pieces, and of
    its exchange."""
    groups = tuple(range(len(grid.first)))
    piece = context // len(groups)
    seconds = []
    swaps = []
    for step in range(steps):
        start = context + step * rows
        began = time.perf_counter()
        for group, link in enumerate(grid.first):
            link.send(_encode(_message(name, groups, group, piece, start, rows, step)))
        answers = [link.recv()[0] for link in grid.last]
        seconds.append(time.perf_counter() - began)
        swaps.append(min(sum(_decode(answer).exchange_seconds) for answer in answers))
    for link in grid.first:
        link.send(_encode(StepMessage(-1, (), (), (name,))))
        link.recv()
    return median(seconds[1:]), median(swaps[1:])


def _message(
    name: str,
    groups: tuple[int, ...],
    group: int,
    piece: int,
    start: int,
    rows: int,
    step: int,
) -> StepMessage:
    writes = group == groups[-1]
    cached = start - group * piece if writes else piece
    held = -(-(cached + rows) // _PAGE_TOKENS) if writes else -(-piece // _PAGE_TOKENS)
    before = 0 if step == 0 else (-(-cached // _PAGE_TOKENS) if writes else held)
    span = Span(
        request_id=name,
        start=start,
        stop=start + rows,
        token_ids=pack_tokens(range(100, 100 + rows)),
        piece_start=group * piece,
        piece_tokens=cached,
        new_pages=tuple(range(before, held)),
        writes=writes,
        sample=writes and rows == 1,
        groups=groups if len(groups) > 1 else (),
    )
    opened = (
        (Introduction(name, SamplingParams(max_tokens=1, temperature=0.0)),)
        if step == 0
        else ()
    )
    return StepMessage(step, (span,), opened)
