"""`medha-loadgen capacity`: the highest rate at which the objectives hold.

First the rate is doubled until they fail (or halved until they hold), then the gap is bisected, on
a logarithmic scale, until it is narrower than the tolerance. Every rate sees the same requests in
the same pattern, only denser.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from loadgen import figures
from loadgen.driver import Driver
from loadgen.errors import EXIT_ALL_FAILED, EXIT_INTERRUPTED, LoadgenError
from loadgen.metrics import measure
from loadgen.objectives import Objectives
from loadgen.options import Options
from loadgen.plan import build_plan
from loadgen.records import PROBE, RequestRecord
from loadgen.report import embedded, html_table, page
from loadgen.results import claim_directory
from loadgen.run import Say, conclude, load, prepare, terms_of
from loadgen.server import Server
from loadgen.tables import as_text, shown
from loadgen.wire import clock

_LOOK_S = 0.5


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """How the rate is searched for."""

    start: float = 1.0  # requests/s
    tolerance: float = 0.05  # ends when the lowest failing rate is at most so much above the best
    highest: float = 10_000.0
    max_runs: int = 16


class Trial(msgspec.Struct, frozen=True):
    """One rate that was tried: the share of requests that met all objectives; valid unless the
    generator was late."""

    rate: float
    attainment: float  # of a trial that was cut short: at most
    holds: bool
    cut_short: bool = False
    doubtful: bool = False  # it failed, and the load generator was late itself
    figures: dict[str, Any] = msgspec.field(default_factory=dict)


class Found(msgspec.Struct, frozen=True):
    """The outcome: the best rate that held, and the lowest above it that did not. None: there was
    none."""

    best: float | None
    failed: float | None
    trials: list[Trial]
    complete: bool = True  # False: stopped before the tolerance was reached


class Doubt:
    """Watches a trial and ends it as soon as more requests than allowed have missed their
    objectives."""

    def __init__(self, objectives: Objectives, allowed: int) -> None:
        self.objectives, self.allowed = objectives, allowed
        self.bad = 0
        self._ended_badly = self._seen = 0
        self._pending: list[RequestRecord] = []

    async def watch(self, driver: Driver) -> None:
        while self.bad <= self.allowed:
            await asyncio.sleep(_LOOK_S)
            self.look(driver, clock())

    def look(self, driver: Driver, now: float) -> None:
        """Count requests that ended badly, and those under way that are past an objective
        already."""
        new = driver.records[self._seen :]
        self._seen += len(new)
        pending = self._pending + [record for record in new if record.kind != PROBE]
        self._pending = [record for record in pending if record.ended_at is None]
        ended = [record for record in pending if record.ended_at is not None]
        self._ended_badly += sum(measure(record, self.objectives).good is False for record in ended)
        self.bad = self._ended_badly + sum(self._overdue(record, now) for record in self._pending)

    def _overdue(self, record: RequestRecord, now: float) -> bool:
        if record.sent_at is None:
            return False
        limits = self.objectives.limits(record)
        first = record.token_times[0] if len(record.token_times) else now
        late = "ttft" in limits and first - record.sent_at > limits["ttft"]
        return late or ("e2el" in limits and now - record.sent_at > limits["e2el"])


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


async def capacity(
    options: Options, search: Search, directory: Path, say: Say
) -> tuple[Found, int]:
    """The whole command: every trial leaves a results directory of its own below `directory`."""
    terms = terms_of(options)
    if not terms.objectives:
        raise LoadgenError("capacity needs objectives: --goodput ttft:500 tpot:100")
    if options.request_rate is not None or options.closed_loop:
        raise LoadgenError(
            "capacity looks for the rate: leave out --request-rate and --max-concurrency"
        )
    plan = build_plan(msgspec.structs.replace(options, request_rate=search.start))
    async with Server(options) as server:
        prepared = await prepare(server, plan, terms, say)
        claim_directory(directory)
        status = 0

        async def measure(rate: float) -> Trial:
            nonlocal status
            at_rate = msgspec.structs.replace(
                options, request_rate=rate, label=f"{rate:.4g} requests/s"
            )
            server.options = at_rate
            place = directory / f"rate-{rate:.4g}"
            claim_directory(place)
            trial_plan = build_plan(at_rate)
            count = len(trial_plan.requests)
            doubt = Doubt(terms.objectives, allowed=int((1 - options.attainment) * count + 1e-9))
            finished = await load(server, prepared, trial_plan, say, doubt.watch)
            result, health, status = conclude(finished, terms, at_rate, place)
            if status == EXIT_INTERRUPTED:
                raise StopSearchError
            cut = finished.cut_short
            share = 1 - doubt.bad / count if cut else result.get("attainment", 0.0)
            holds = not cut and share >= options.attainment
            doubtful = bool(health.own_failures) and not holds
            trial = Trial(rate, share, holds, cut, doubtful, result["classes"]["all"])
            say(
                f"{rate:.4g} requests/s: {_met(trial)} met the objectives, "
                f"{'holds' if holds else 'fails'}"
            )
            if doubtful:
                say(f"the load generator itself was slow: {health.own_failures[0].summary}")
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
    above = (
        f", they fail at {found.failed:.4g}"
        if found.failed is not None
        else ", the highest rate allowed"
    )
    unfinished = "" if found.complete else " (search cut short)"
    doubt = (
        "; doubtful: the load generator itself was late"
        if any(t.doubtful for t in found.trials)
        else ""
    )
    return f"capacity: {found.best:.4g} requests/s hold the objectives{above}{unfinished}{doubt}"


def table_of(found: Found) -> tuple[list[str], list[list[str]]]:
    """The trials, by rate."""
    header = [
        "requests/s",
        "met objectives",
        "verdict",
        "TTFT P50, ms",
        "TTFT P99, ms",
        "TBT P99, ms",
        "tokens/s",
    ]
    rows = []
    for trial in sorted(found.trials, key=lambda trial: trial.rate):
        ttft, gaps = trial.figures.get("ttft", {}), trial.figures.get("itl", {})
        numbers = (ttft.get("p50", ttft.get("median")), ttft.get("p99"), gaps.get("p99"))
        speed = trial.figures.get("output_throughput")
        verdict = "holds" if trial.holds else "fails"
        rows.append(
            [f"{trial.rate:.4g}", _met(trial), verdict, *(shown(n, "") for n in (*numbers, speed))]
        )
    return header, rows


def _met(trial: Trial) -> str:
    return ("at most " if trial.cut_short else "") + shown(trial.attainment, "%")


def _write(found: Found, options: Options, directory: Path) -> None:
    content: dict[str, Any] = {
        "capacity": found.best,
        "failed_at": found.failed,
        "complete": found.complete,
    }
    content |= {
        "attainment": options.attainment,
        "goodput": options.goodput,
        "goodput_long": options.goodput_long,
    }
    content |= {
        "policy": options.policy,
        "trials": [msgspec.to_builtins(trial) for trial in found.trials],
    }
    (directory / "capacity.json").write_text(json.dumps(content, indent=2) + "\n")
    parts = [f"<h1>{summary(found)}</h1>", html_table(table_of(found))]
    if figures.available() and found.trials:
        picture = directory / "capacity.png"
        rates, shares = [t.rate for t in found.trials], [t.attainment for t in found.trials]
        figures.draw_capacity(rates, shares, options.attainment, found.best, picture)
        parts.append(
            '<div class="figures">'
            f"{embedded(picture, 'Share of requests that met all objectives')}"
            "</div>"
        )
    (directory / "report.html").write_text(page("Capacity", parts))
    (directory / "capacity.txt").write_text(f"{summary(found)}\n\n{as_text(table_of(found))}\n")
