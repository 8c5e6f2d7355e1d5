"""One cell of the policy laboratory: a policy under one load, played once, and what came of it.
What is found is kept in a directory, a file a cell, so that a laboratory can be cut short and go
on.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from loadgen.judge.isolated import Points
from loadgen.judge.latencies import gaps, percentile, ttfts
from loadgen.records import LONG, SHORT, RequestRecord
from loadgen.twin.options import scheduler_of
from loadgen.twin.replay import expect, idle_points, play
from loadgen.twin.scenarios import (
    Asking,
    Scenario,
    capacity_of,
    deadlines_of,
    objectives_of,
    scenario_of,
)

# name: policy, and what else of the scheduler section
POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "fcfs": ("fcfs", {}),
    "fcfs_chunked": ("fcfs_chunked", {}),
    "edf": ("edf", {}),
    "lrs": ("lrs", {}),
    "lars": ("lars", {}),
    "hrrn": ("hrrn", {}),
    "spf": ("spf", {}),
    "relegation": ("relegation", {}),
    "dspf": ("dspf", {}),
    "aspf": ("aspf", {}),
    "boost": ("boost", {}),
    "dboost": ("dboost", {}),
    "preflow": ("preflow", {}),
    "dpreflow": ("dpreflow", {}),
    "guardc": ("guardc", {}),
    "preflow, T 3 s": ("preflow", {"order": {"preflow_doubling_s": 3.0}}),
    "preflow, T 30 s": ("preflow", {"order": {"preflow_doubling_s": 30.0}}),
    "lars, long_share 0.25": ("lars", {"long_share": 0.25}),
    "spf, long_share 0.25": ("spf", {"long_share": 0.25}),
}
# a good TTFT: 5 times idle, or half a second
_GOOD_TIMES = 5.0
_GOOD_S = 0.5
_LONG_IN_TIME = 1.5  # times idle


Kept = TypeVar("Kept", bound=msgspec.Struct)


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What tells cells apart; `load` is a share of the capacity, `noise` the spread of a batch's
    time."""

    scenario: str
    load: float
    asking: Asking
    noise: float
    seed: int
    policy: str


class Cell(Setup, frozen=True, kw_only=True):
    """What is played: so many requests."""

    count: int
    traces: str | None = None

    @property
    def name(self) -> str:
        """Of its file."""
        policy = self.policy.replace(", ", "-").replace(" ", "")
        return (
            f"{self.scenario}-n{self.count}-load{self.load:g}-{self.asking}-noise{self.noise:g}"
            f"-seed{self.seed}-{policy}"
        )


class Finding(Setup, frozen=True, kw_only=True):
    """What came of a cell; TTFT in multiples of the idle server's, shares from 0 to 1."""

    good: float
    short_p50: float
    short_p99: float
    long_p50: float
    long_p99: float
    worst: float
    long_in_time: float  # within 1.5 times idle
    kept: float  # first tokens within what their clients asked for, or the default
    # the same of tight, default, lax; and of the long ones: long tight ..
    kept_by: dict[str, float]
    tbt_p99_s: float
    tokens_per_s: float


class Measure(msgspec.Struct, frozen=True):
    """What cells are measured by: a scenario's capacity and its TTFT on the idle server."""

    rate: float
    points: Points


@lru_cache(maxsize=2)
def _scenario(name: str, count: int, seed: int, traces: str | None) -> Scenario:
    """The cells of a scenario come one after the other, so that it is made once."""
    return scenario_of(name, count, seed, traces)


def measure_of(cell: Cell) -> Measure:
    """The same for all cells of a scenario and a seed."""
    scenario = _scenario(cell.scenario, cell.count, cell.seed, cell.traces)
    idle = msgspec.structs.replace(
        scenario.deployment, scheduler=scheduler_of("lars", {})
    )
    return Measure(capacity_of(scenario), idle_points(idle, scenario.requests))


def find(cell: Cell, measure: Measure) -> Finding:
    """Play a cell."""
    scenario = _scenario(cell.scenario, cell.count, cell.seed, cell.traces)
    rate = measure.rate * cell.load
    policy, more = POLICIES[cell.policy]
    deployment = msgspec.structs.replace(
        scenario.deployment, noise=cell.noise, scheduler=scheduler_of(policy, more)
    )
    sent = [
        msgspec.structs.replace(request, at=(request.at or 0.0) / rate)
        for request in scenario.requests
    ]
    deadlines = deadlines_of(scenario, cell.asking)
    played = play(deployment, sent, asked=objectives_of(deadlines))
    records = played.records
    expect(records, measure.points)
    short = ttfts(records, SHORT, normalised=True)
    long = ttfts(records, LONG, normalised=True)
    met: dict[str, list[bool]] = {}
    for record in records:
        kind, limit_s = deadlines[record.index]
        kept = _ttft_s(record) <= limit_s
        for name in (kind, f"long {kind}") if record.kind == LONG else (kind,):
            met.setdefault(name, []).append(kept)
    kept_by = {name: _share(values) for name, values in sorted(met.items())}
    tokens = sum(record.prompt_tokens + len(record.token_times) for record in records)
    return Finding(
        scenario=cell.scenario,
        load=cell.load,
        asking=cell.asking,
        noise=cell.noise,
        seed=cell.seed,
        policy=cell.policy,
        good=_share([_is_good(record) for record in records]),
        short_p50=percentile(short, 50),
        short_p99=percentile(short, 99),
        long_p50=percentile(long, 50),
        long_p99=percentile(long, 99),
        worst=percentile(long, 100),
        long_in_time=_share([bool(times <= _LONG_IN_TIME) for times in long]),
        kept=_share(
            [_ttft_s(record) <= deadlines[record.index][1] for record in records]
        ),
        kept_by=kept_by,
        tbt_p99_s=percentile(gaps(records), 99),
        tokens_per_s=tokens / played.duration_s,
    )


def _share(values: list[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def _ttft_s(record: RequestRecord) -> float:
    if not len(record.token_times):
        return float("inf")
    return record.token_times[0] - (record.sent_at or 0.0)


def _is_good(record: RequestRecord) -> bool:
    return _ttft_s(record) <= max(
        _GOOD_S, _GOOD_TIMES * (record.isolated_ttft_s or 0.0)
    )


class Shelf:
    """What was found already, in a directory; None: nothing is kept."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)

    def finding(self, cell: Cell) -> Finding | None:
        """What came of this cell before."""
        return self._read(cell.name, Finding)

    def measure(self, cell: Cell) -> Measure:
        """What the cell is measured by: from before, or measured now."""
        name = f"measure-{cell.scenario}-n{cell.count}-seed{cell.seed}"
        kept = self._read(name, Measure)
        if kept is None:
            kept = measure_of(cell)
            self._write(name, kept)
        return kept

    def play(self, cell: Cell) -> Finding:
        """Play a cell and keep what came of it."""
        found = find(cell, self.measure(cell))
        self._write(cell.name, found)
        return found

    def _read(self, name: str, kind: type[Kept]) -> Kept | None:
        path = None if self._directory is None else self._directory / f"{name}.json"
        if path is None or not path.exists():
            return None
        return msgspec.json.decode(path.read_bytes(), type=kind)

    def _write(self, name: str, kept: msgspec.Struct) -> None:
        """A file is there whole or not at all."""
        if self._directory is not None:
            part = self._directory / f"{name}.{os.getpid()}.part"
            part.write_bytes(msgspec.json.encode(kept))
            part.replace(self._directory / f"{name}.json")
