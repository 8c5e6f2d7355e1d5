"""Which requests share a prefill and which instances work on it: dynamic programming."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Part(NamedTuple):
    """Requests [first, stop) on instances [begin, end)."""

    first: int
    stop: int
    begin: int
    end: int


def divide(requests: int, instances: int, cost: Callable[[Part], float]) -> list[Part]:
    """Neighbours in the order of the requests on neighbours in the order of the instances, so that
    the sum of the costs is least; instances may be left over. Empty: no division is finite."""
    # of the first requests, on the first instances: the least cost, and the part that comes last
    empty = Part(0, 0, 0, 0)
    best = {(0, end): (0.0, empty) for end in range(instances + 1)}
    for stop in range(1, requests + 1):
        best[stop, 0] = float("inf"), empty
        for end in range(1, instances + 1):
            found = best[stop, end - 1]
            for first in range(stop):
                for begin in range(end):
                    before = best[first, begin][0]
                    if before < found[0]:
                        part = Part(first, stop, begin, end)
                        found = min(found, (before + cost(part), part))
            best[stop, end] = found
    parts = []
    at = requests, instances
    while at[0]:
        seconds, part = best[at]
        if seconds == float("inf"):
            return []
        parts.append(part)
        at = part.first, part.begin
    return parts[::-1]
