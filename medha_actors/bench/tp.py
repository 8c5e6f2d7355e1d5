"""Do tensor ranks pay? Time to first token of a lone prompt and decode speed of a lone request: two
ranks against two stages and one actor, alternated (paper, 3.3).

Two stages share a prompt only once it is cut into chunks that follow each other; two ranks share
every row of it, and add up twice a layer.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from medha_actors.actors.engine import RayEngine
from medha_actors.actors.local import engine, generate, greedy, prompt_of

PROMPTS = (32, 128, 512)
# stages, tensor ranks; the first is what the others are compared with
LAYOUTS = {
    "2 stages": (2, 1),
    "2 ranks": (1, 2),
    "1 actor": (1, 1),
}
_DECODED = 64  # tokens


async def run(repeats: int = 7, dtype: str = "auto") -> list[dict[str, Any]]:
    """Median milliseconds to the first token by length of the prompt, the median of the rounds'
    ratios to two stages, and tokens/s of a decode."""
    times: dict[tuple[str, int], list[float]] = {}
    speeds: dict[str, list[float]] = {}
    for repeat in range(repeats):
        # one after the other: each is to have all cores
        for name, (spp, tp) in LAYOUTS.items():
            async with engine(_arguments(spp, tp, dtype)) as handle:
                await generate(handle, prompt_of(500), greedy(4))
                for tokens in PROMPTS:
                    times.setdefault((name, tokens), []).append(
                        await _ttft(handle, tokens, repeat)
                    )
                answer = await generate(
                    handle, prompt_of(64, salt=repeat), greedy(_DECODED)
                )
                speeds.setdefault(name, []).append(answer.tokens_per_s)
    return [_row(name, times, speeds) for name in LAYOUTS]


def _arguments(spp: int, tp: int, dtype: str) -> dict[str, Any]:
    return {
        "model_loading_config": {"model_source": "embedded", "dtype": dtype},
        "parallel": {"spp": spp, "tp": tp},
        "actors": {"device": "cpu", "num_cpus": 0.5, "threads": 1, "spares": 0},
        "kv_cache": {"budget_bytes": 2**28},
    }


async def _ttft(handle: RayEngine, tokens: int, salt: int) -> float:
    return (await generate(handle, prompt_of(tokens, salt=salt), greedy(1))).ttft_s


def _row(
    name: str, times: dict[tuple[str, int], list[float]], speeds: dict[str, list[float]]
) -> dict[str, Any]:
    row: dict[str, Any] = {"layout": name}
    two_stages = next(iter(LAYOUTS))
    for tokens in PROMPTS:
        seconds = times[name, tokens]
        theirs = times[two_stages, tokens]
        ratios = [mine / other for mine, other in zip(seconds, theirs, strict=True)]
        row[f"ttft_{tokens}_ms"] = 1e3 * median(seconds)
        row[f"ttft_{tokens}_ratio"] = median(ratios)
    row["decode_tokens_per_s"] = median(speeds[name])
    return row
