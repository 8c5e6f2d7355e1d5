"""`fuzz` and `hostile`: the campaigns that the tests run in small, in full against a real server.

Each is a module of this package with `run(url, requests)`, which returns what it found wrong, one
line each.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from tests.chaos import tables
from tests.chaos.server import running


def run(name: str, requests: int, results: Path) -> int:
    """Exit status 1 if the campaign found something, or the pipeline was rebuilt during it."""
    campaign = importlib.import_module(f"tests.chaos.{name}")
    with running(results / "server") as server:
        wrong = list(campaign.run(server.url, requests))
        server.settle()
        rebuilds = server.rebuilds()
    if rebuilds:
        wrong.append(f"the pipeline was rebuilt {rebuilds} times")
    print(f"{name}: {requests:,} requests, {rebuilds} rebuilds")
    print("\n".join(wrong) or "nothing wrong")
    tables.save(results / f"{name}.json", {"requests": requests, "wrong": wrong})
    return int(bool(wrong))
