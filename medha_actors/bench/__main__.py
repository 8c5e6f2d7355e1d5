"""`python -m medha_actors.bench NAME`: run one benchmark, print its table, write it as JSON beside
if asked.

steps      what a step costs beside the model (empty stages)
speed      prefill and decode tokens/s of the embedded model, and the share of the machine's limits
spp        one long prompt on two stages, one stage, one stage with two threads
kvp        time between tokens at long contexts with the KV cache on one core and on two
telemetry  tokens/s with timelines, figures and all requests traced, and without
prefix     time to first token of a warm turn and a cold one, and what keys and lookups cost
decision   the scheduler's time per decision with many requests waiting
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
from pathlib import Path
from typing import Any


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        prog="medha_actors.bench",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    names = ("steps", "speed", "spp", "kvp", "prefix", "telemetry", "decision")
    parser.add_argument("name", choices=names)
    parser.add_argument("--repeats", type=int, help="rounds of the alternation")
    parser.add_argument("--dtype", default=None, help="float32 | bfloat16")
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    given = parser.parse_args()
    options = {
        name: value for name in ("repeats", "dtype") if (value := getattr(given, name)) is not None
    }
    rows = asyncio.run(_benchmark(given.name, options))
    print(table(rows))
    if given.json:
        given.json.write_text(
            json.dumps(
                {"machine": platform.processor() or platform.machine(), "rows": rows}, indent=1
            )
        )


async def _benchmark(name: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    if name == "decision":
        from medha_actors.bench import decision

        return decision.run()
    from medha_actors.bench import kvp, prefix, speed, spp, steps

    if name == "telemetry":
        from medha_actors.bench import telemetry

        return await telemetry.run(**options)
    benchmarks = {
        "steps": steps.run,
        "speed": speed.run,
        "spp": spp.run,
        "kvp": kvp.run,
        "prefix": prefix.run,
    }
    return await benchmarks[name](**options)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as an aligned text table."""
    cells = [list(rows[0])] + [[_text(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in cells
    )


def _text(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


if __name__ == "__main__":
    main()
