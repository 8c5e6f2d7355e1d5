"""`python -m medha_actors.bench NAME`: run one benchmark, print its table, write it as JSON beside
if asked.

steps      what a step costs beside the model (empty stages)
speed      prefill and decode tokens/s of the embedded model, and the share of the machine's limits
spp        one long prompt on two stages, one stage, one stage with two threads
tp         time to first token and decode speed of two tensor ranks, two stages and one actor
kvp        time between tokens at long contexts with the KV cache on one core and on two
prefix     time to first token of a warm turn and a cold one, and what keys and lookups cost
warm       warm turns beside a cold prefill of 7,500 tokens, and of 32,000
decision   the scheduler's time per decision with many requests waiting
grammars   a decode step of 16 requests that follow a schema, and of 16 that are free
gpu        what only a GPU can show, with targets; its own options: `gpu --help` (docs/gpu.md)

What telemetry costs is measured by `python -m deployments.bench`.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

from medha_actors.bench.table import write_table

_NAMES = (
    "steps",
    "speed",
    "spp",
    "tp",
    "kvp",
    "prefix",
    "warm",
    "decision",
    "grammars",
)


def main() -> None:
    """Parse, run, print."""
    if sys.argv[1:2] == [
        "gpu"
    ]:  # has options of its own, and needs neither Ray nor a model
        from medha_actors.bench import gpu

        gpu.main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        prog="medha_actors.bench",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("name", choices=(*_NAMES, "gpu"))
    parser.add_argument("--repeats", type=int, help="rounds of the alternation")
    parser.add_argument("--dtype", default=None, help="float32 | bfloat16")
    parser.add_argument(
        "--peer",
        metavar="URL",
        help="speed: another server, asked for the same in turn",
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file as well")
    given = parser.parse_args()
    options = {}
    for name in ("repeats", "dtype", "peer"):
        value = getattr(given, name)
        if value is not None:
            options[name] = value
    write_table(asyncio.run(_benchmark(given.name, options)), given.json)


async def _benchmark(name: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    if name == "decision":  # needs neither Ray nor torch
        from medha_actors.bench import decision

        return decision.run()
    if name == "grammars":  # needs no Ray
        from medha_actors.bench import grammars

        return grammars.run(**options)
    from medha_actors.bench import kvp, prefix, speed, spp, steps, tp, warm

    if name == "steps":
        return await steps.run()
    if name == "speed":
        return await speed.run(**options)
    if name == "spp":
        return await spp.run(**options)
    if name == "tp":
        return await tp.run(**options)
    if name == "prefix":
        return await prefix.run(**options)
    if name == "warm":
        return await warm.run(**options)
    return await kvp.run(**options)


if __name__ == "__main__":
    main()
