"""What one step costs beside the model: two nearly empty stages, one request decoding."""

from __future__ import annotations

from itertools import pairwise
from statistics import median
from typing import Any

from medha_actors.actors.local import engine, generate, greedy, prompt_of

_TINY = {
    "layers": 2,
    "hidden": 32,
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 16,
    "intermediate": 32,
    "vocabulary": 256,
}


async def run(tokens: int = 2000) -> list[dict[str, Any]]:
    """Rows of milliseconds per step: from token to token, in the stages, and the rest (control
    plane)."""
    rows = []
    for stages in (1, 2):
        args = {
            "model_loading_config": {
                "model_source": "random",
                "random": _TINY,
                "dtype": "float32",
            },
            "parallel": {"spp": stages},
            # several threads would wait for each other longer than they compute
            "actors": {"num_cpus": 0.5, "threads": 1, "spares": 0},
            "predictor": {"cache": False},
            "kv_cache": {"budget_bytes": 2**24},
        }
        async with engine(args) as handle:
            await generate(handle, prompt_of(16), greedy(200))
            before = await handle.stats()
            times = (
                await generate(handle, prompt_of(16), greedy(tokens))
            ).token_times_s
            after = await handle.stats()
        gaps = sorted(b - a for a, b in pairwise(times))
        steps = after["steps_total"] - before["steps_total"]
        stages_ms = (
            1e3 * (sum(after["stage_busy_s"]) - sum(before["stage_busy_s"])) / steps
        )
        mean_ms = 1e3 * sum(gaps) / len(gaps)
        rows.append(
            {
                "stages": stages,
                "step_ms_p50": 1e3 * median(gaps),
                "step_ms_p99": 1e3 * gaps[len(gaps) * 99 // 100],
                "step_ms_mean": mean_ms,
                "in_the_stages_ms_mean": stages_ms,
                "control_plane_ms_mean": mean_ms - stages_ms,
            }
        )
    return rows
