"""`medha-loadgen experiment fairness --simulated`: the same two tenants in the twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from loadgen.judge.latencies import percentile
from loadgen.show.output import Say
from loadgen.show.tables import Table
from loadgen.twin.admission.neighbours import (
    GREEDY,
    MODEST,
    Neighbours,
    Outcome,
    capacity_of,
    play_neighbours,
    pooled,
)
from loadgen.workload.mixes import Mix

_HEADER = ["", "modest: short TTFT P50", "P99", "true", "late", "long P50", "refused"]
_HEADER += ["greedy: short P50", "true", "tokens/s, both"]


def simulated_fairness(
    mix: Mix,
    variants: Mapping[str, Mapping[str, Any]],
    loads: Sequence[float],
    modest_load: float,
    count: int,
    seeds: Sequence[int],
    say: Say,
) -> Table:
    """A row for each variant and each multiple of its share that the greedy one sends."""
    rows = []
    capacities: dict[str, float] = {}
    for variant, scheduler in variants.items():
        plain = Neighbours(
            policy=scheduler["policy"],
            mix=mix,
            fair=scheduler.get("fairness", {}).get("enabled", True),
            modest_load=modest_load,
            count=count,
        )
        if plain.policy not in capacities:
            capacities[plain.policy] = capacity_of(plain)
            say(
                f"capacity under {plain.policy}: {capacities[plain.policy]:.3g} requests/s"
            )
        for times in loads:
            asked = msgspec.structs.replace(plain, times=times)
            found = []
            for seed in seeds:
                seeded = msgspec.structs.replace(asked, seed=seed)
                found.append(play_neighbours(seeded, capacities[plain.policy]))
            modest = pooled([one[MODEST] for one in found])
            greedy = pooled([one[GREEDY] for one in found])
            rows.append([f"{variant}, greedy {times:g}x", *_shown(modest, greedy)])
            say(rows[-1][0])
    return _HEADER, rows


def _shown(modest: Outcome, greedy: Outcome) -> list[str]:
    return [
        f"{1000 * modest.short_p(50):.0f} ms",
        f"{1000 * modest.short_p(99):.0f} ms",
        f"{100 * modest.true:.0f}%",
        f"{100 * modest.late:.0f}%",
        f"{percentile(modest.long_s, 50):.1f} s",
        str(modest.refused),
        f"{1000 * greedy.short_p(50):,.0f} ms",
        f"{100 * greedy.true:.0f}%",
        f"{modest.tokens_per_s + greedy.tokens_per_s:,.0f}",
    ]
