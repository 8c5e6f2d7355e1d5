"""`medha-loadgen capacity`: the highest rate at which the objectives hold.

First the rate is doubled until they fail (or halved until they hold), then the gap is bisected, on a logarithmic
scale, until it is narrower than the tolerance. Every rate sees the same requests in the same pattern, only denser.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from loadgen import figures
from loadgen.errors import EXIT_ALL_FAILED, EXIT_INTERRUPTED, LoadgenError
from loadgen.options import Options
from loadgen.plan import build_plan
from loadgen.report import embedded, html_table, page
from loadgen.results import claim_directory
from loadgen.run import Say, conclude, load, prepare, terms_of
from loadgen.server import Server
from loadgen.tables import as_text, shown


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """How the rate is searched for."""

    start: float = 1.0  # requests/s
    tolerance: float = 0.05  # ends when the lowest failing rate is at most so much above the best
    highest: float = 10_000.0
    max_runs: int = 16


class Trial(msgspec.Struct, frozen=True):
    """One rate that was tried: the share of requests that met all objectives; valid unless the generator was late."""

    rate: float
    attainment: float
    holds: bool
    figures: dict[str, Any] = msgspec.field(default_factory=dict)


class Found(msgspec.Struct, frozen=True):
    """The outcome: the best rate that held, and the lowest above it that did not. None: there was none."""

    best: float | None
    failed: float | None
    trials: list[Trial]
    complete: bool = True  # False: stopped before the tolerance was reached


class StopSearchError(Exception):
    """The search has to end with what it has."""


async def find_capacity(measure: Callable[[float], Awaitable[Trial]], search: Search) -> Found:
    """Search with `measure(rate)`, which may raise StopSearchError."""
    trials: list[Trial] = []
    low: float | None = None
    high: float | None = None
    rate = search.start
    complete = True
    try:
        while len(trials) < search.max_runs:
            trial = await measure(rate)
            trials.append(trial)
            if trial.holds:
                low = rate
            else:
                high = rate
            if low is not None and low >= search.highest:
                break
            if low is not None and high is not None and high <= low * (1 + search.tolerance):
                break
            if low is None and rate < search.start / 2**12:
                break
            rate = _next(low, high, search)
        else:
            complete = False
    except StopSearchError:
        complete = False
    return Found(low, high, trials, complete)


def _next(low: float | None, high: float | None, search: Search) -> float:
    if low is None:
        assert high is not None
        return high / 2
    if high is None:
        return min(low * 2, search.highest)
    return math.sqrt(low * high)


async def capacity(options: Options, search: Search, directory: Path, say: Say) -> tuple[Found, int]:
    """The whole command: every trial leaves a results directory of its own below `directory`."""
    terms = terms_of(options)
    if not terms.objectives:
        raise LoadgenError("capacity needs objectives: --goodput ttft:500 tpot:100")
    if options.request_rate is not None or options.closed_loop:
        raise LoadgenError("capacity looks for the rate: leave out --request-rate and --max-concurrency")
    plan = build_plan(msgspec.structs.replace(options, request_rate=search.start))
    async with Server(options) as server:
        prepared = await prepare(server, plan, terms, say)
        claim_directory(directory)
        status = 0

        async def measure(rate: float) -> Trial:
            nonlocal status
            at_rate = msgspec.structs.replace(options, request_rate=rate, label=f"{rate:.4g} requests/s")
            server.options = at_rate
            place = directory / f"rate-{rate:.4g}"
            claim_directory(place)
            finished = await load(server, prepared, build_plan(at_rate), say)
            result, health, status = conclude(finished, terms, at_rate, place)
            if status == EXIT_INTERRUPTED:
                raise StopSearchError
            own = [check for check in health.checks[:3] if check.result == "FAILED"]  # lateness, event loop, CPU
            share = result.get("attainment", 0.0)
            holds = share >= options.attainment
            trial = Trial(rate, share, holds, result["classes"]["all"])
            verdict = "holds" if holds else "fails"
            say(f"{rate:.4g} requests/s: {100 * share:.4g}% met the objectives, {verdict}")
            if own and not holds:
                reason = f"{own[0].title.lower()}: {own[0].summary}"
                raise LoadgenError(f"at {rate:.4g} requests/s it was the load generator that failed ({reason})")
            return trial

        found = await find_capacity(measure, search)
    _write(found, options, directory)
    if status == EXIT_INTERRUPTED:
        return found, EXIT_INTERRUPTED
    return found, 0 if found.best is not None else EXIT_ALL_FAILED


def summary(found: Found) -> str:
    """One line."""
    if found.best is None:
        return "the objectives held at no rate that was tried"
    above = f", they fail at {found.failed:.4g}" if found.failed is not None else ", the highest rate allowed"
    unfinished = "" if found.complete else " (search cut short)"
    return f"capacity: {found.best:.4g} requests/s hold the objectives{above}{unfinished}"


def table_of(found: Found) -> tuple[list[str], list[list[str]]]:
    """The trials, by rate."""
    header = ["requests/s", "met objectives", "verdict", "TTFT P50, ms", "TTFT P99, ms", "TBT P99, ms", "tokens/s"]
    rows = []
    for trial in sorted(found.trials, key=lambda trial: trial.rate):
        ttft, gaps = trial.figures.get("ttft", {}), trial.figures.get("itl", {})
        numbers = (ttft.get("p50", ttft.get("median")), ttft.get("p99"), gaps.get("p99"))
        speed = trial.figures.get("output_throughput")
        verdict = "holds" if trial.holds else "fails"
        rows.append(
            [f"{trial.rate:.4g}", shown(trial.attainment, "%"), verdict, *(shown(n, "") for n in (*numbers, speed))]
        )
    return header, rows


def _write(found: Found, options: Options, directory: Path) -> None:
    content: dict[str, Any] = {"capacity": found.best, "failed_at": found.failed, "complete": found.complete}
    content |= {"attainment": options.attainment, "goodput": options.goodput, "goodput_long": options.goodput_long}
    content |= {"policy": options.policy, "trials": [msgspec.to_builtins(trial) for trial in found.trials]}
    (directory / "capacity.json").write_text(json.dumps(content, indent=2) + "\n")
    parts = [f"<h1>{summary(found)}</h1>", html_table(table_of(found))]
    if figures.available() and found.trials:
        picture = directory / "capacity.png"
        rates, shares = [t.rate for t in found.trials], [t.attainment for t in found.trials]
        figures.draw_capacity(rates, shares, options.attainment, found.best, picture)
        parts.append(f'<div class="figures">{embedded(picture, "Share of requests that met all objectives")}</div>')
    (directory / "report.html").write_text(page("Capacity", parts))
    (directory / "capacity.txt").write_text(f"{summary(found)}\n\n{as_text(table_of(found))}\n")
