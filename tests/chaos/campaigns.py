"""`fuzz` and `hostile`: the campaigns that the tests run in small, in full against a real server.

`tests.chaos.fuzz.run(url, requests)` returns what was wrong, one line each;
`tests.chaos.hostile.run(url, pid, requests)` a result with what was wrong and the megabytes of each
kind of process before, at most, and when it was quiet again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.chaos import fuzz as random_requests
from tests.chaos import hostile as attacks
from tests.chaos import tables
from tests.chaos.filling import fill
from tests.chaos.growth import MEMORY_BYTES, MEMORY_SHARE
from tests.chaos.server import Server, running


def fuzz(requests: int, results: Path) -> int:
    """Exit status 1 if the campaign found something, or the pipeline was rebuilt during it."""
    with running(results / "server", **random_requests.MODEL) as server:
        wrong = [*random_requests.run(server.url, requests), *_rebuilt(server)]
    return _told(
        "fuzz", requests, wrong, {"requests": requests, "wrong": wrong}, results
    )


def hostile(requests: int, results: Path) -> int:
    """Exit status 1 also if memory did not come back."""
    with running(results / "server") as server:
        fill(server)
        result = attacks.run(server.url, server.session, requests)
        wrong = [*result.wrong, *_rebuilt(server)]
    wrong += kept(result.before_mb, result.settled_mb)
    print(memory_table(result.before_mb, result.peak_mb, result.settled_mb))
    facts = {"result": result, "wrong": wrong}
    return _told("hostile", requests, wrong, facts, results)


def kept(before_mb: Mapping[str, int], settled_mb: Mapping[str, int]) -> list[str]:
    """The processes whose memory did not come back, by more than the soak allows."""
    larger: list[str] = []
    for name, before in before_mb.items():
        settled = settled_mb.get(name, 0)
        if settled > before * (1 + MEMORY_SHARE) + MEMORY_BYTES / 2**20:
            larger.append(f"{name}: memory {before} -> {settled} MB")
    return larger


def memory_table(
    before_mb: Mapping[str, int],
    peak_mb: Mapping[str, int],
    settled_mb: Mapping[str, int],
) -> str:
    """Each kind of process before, at most, and when it was quiet again."""
    head = ("process", "before, MB", "largest", "after")
    rows = [
        [name, str(before), str(peak_mb.get(name, "-")), str(settled_mb.get(name, "-"))]
        for name, before in sorted(before_mb.items())
    ]
    return tables.markdown(head, rows)


def _rebuilt(server: Server) -> list[str]:
    server.settle()
    rebuilds = server.rebuilds()
    return [f"the pipeline was rebuilt {rebuilds} times"] if rebuilds else []


def _told(name: str, requests: int, wrong: list[str], facts: Any, results: Path) -> int:
    print(f"{name}: {requests:,} requests, {len(wrong)} faults")
    print("\n".join(wrong) or "nothing wrong")
    tables.save(results / f"{name}.json", facts)
    return int(bool(wrong))
