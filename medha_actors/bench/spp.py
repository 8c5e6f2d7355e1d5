"""Does stream pipeline parallelism pay? One 4,096-token prompt on four layouts, alternated (paper,
3.3)."""

from __future__ import annotations

from statistics import median
from typing import Any

from medha_actors.actors.local import engine, generate, greedy, prompt_of

# stages, threads, attention
LAYOUTS = {
    "2 stages x 1 thread": (2, 1, "auto"),
    "1 stage x 1 thread": (1, 1, "auto"),
    "1 stage x 2 threads": (1, 2, "auto"),
    "1 stage x 2 threads, torch": (1, 2, "sdpa"),
}


async def run(
    tokens: int = 4096, repeats: int = 5, dtype: str = "auto"
) -> list[dict[str, Any]]:
    """Median TTFT per layout, the ratio to two stages (median of the rounds' ratios), and how busy
    the stages were."""
    times: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    busy: dict[str, list[float]] = {name: [] for name in LAYOUTS}
    for repeat in range(repeats):
        # one after the other: each is to have all cores
        for name, (spp, threads, attention) in LAYOUTS.items():
            args = {
                "model_loading_config": {"model_source": "embedded", "dtype": dtype},
                "parallel": {"spp": spp},
                "actors": {"threads": threads, "attention": attention, "spares": 0},
                "kv_cache": {"budget_bytes": 2**29},
            }
            async with engine(args) as handle:
                await generate(handle, prompt_of(500), greedy(2))
                before = (await handle.stats())["stage_busy_s"]
                answer = await generate(
                    handle, prompt_of(tokens, salt=repeat), greedy(1)
                )
                ttft_s = answer.ttft_s
                after = (await handle.stats())["stage_busy_s"]
            times[name].append(ttft_s)
            busy_s = (sum(after) - sum(before)) / len(after)
            busy[name].append(busy_s / ttft_s)
    two_stages = times[next(iter(LAYOUTS))]
    rows = []
    for name, seconds in times.items():
        ratios = [
            mine / theirs for mine, theirs in zip(seconds, two_stages, strict=True)
        ]
        rows.append(
            {
                "layout": name,
                "ttft_s": median(seconds),
                "slower_than_two_stages": median(ratios),
                "stages_busy": median(busy[name]),
            }
        )
    return rows
