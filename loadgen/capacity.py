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
from typing import Annotated, Any

import msgspec

from loadgen.errors import EXIT_ALL_FAILED, EXIT_INTERRUPTED, LoadgenError
from loadgen.flags import flag
from loadgen.judge.metrics import measure
from loadgen.judge.objectives import Objectives
from loadgen.judge.options import Terms
from loadgen.options import RunOptions
from loadgen.preparation import Prepared, prepare, suited, terms_of
from loadgen.records import PROBE, RequestRecord
from loadgen.run import conclude, load
from loadgen.send.driver import Driver
from loadgen.send.probe import ServerProbe
from loadgen.send.wire import clock
from loadgen.show import figures
from loadgen.show.output import Say, claim_directory
from loadgen.show.pages import embedded, page
from loadgen.show.tables import as_text, shown
from loadgen.workload.options import SEARCHED_COUNT, PaceOptions
from loadgen.workload.plan import build_plan

LOOK_S = 0.5


class SearchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the rate is searched for. Rates in requests per second."""

    start: Annotated[float, flag("first rate to try", name="--start-rate", gt=0)] = 1.0
    # the search ends when the lowest rate that fails is at most so much above the best
    tolerance: Annotated[
        float, flag("stop when the answer is known to this share", gt=0)
    ] = 0.05
    highest: Annotated[float, flag("never try more", name="--highest-rate", gt=0)] = (
        10_000.0
    )
    max_runs: Annotated[int, flag("rates to try at most", ge=1)] = 16


class Trial(msgspec.Struct, frozen=True):
    """One rate that was tried: the share of requests that met all objectives; valid unless the
    generator was late."""

    rate: float
    attainment: float  # of a trial that was cut short: at most
    holds: bool
    cut_short: bool = False
    doubtful: bool = False  # it failed, and the load generator was late itself
    figures: dict[str, Any] = msgspec.field(default_factory=dict)


class CapacityFound(msgspec.Struct, frozen=True):
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
        self.objectives = objectives
        self.allowed = allowed
        self.bad = 0
        self._ended_badly = self._seen = 0
        self._pending: list[RequestRecord] = []

    async def watch(self, driver: Driver) -> None:
        while self.bad <= self.allowed:
            await asyncio.sleep(LOOK_S)
            self.look(driver, clock())

    def look(self, driver: Driver, now: float) -> None:
        """Count requests that ended badly, and those under way that are past an objective
        already."""
        new = driver.records[self._seen :]
        self._seen += len(new)
        pending = self._pending + [record for record in new if record.kind != PROBE]
        self._pending = [record for record in pending if record.ended_at is None]
        ended = [record for record in pending if record.ended_at is not None]
        self._ended_badly += sum(
            measure(record, self.objectives).good is False for record in ended
        )
        self.bad = self._ended_badly + sum(
            self._overdue(record, now) for record in self._pending
        )

    def _overdue(self, record: RequestRecord, now: float) -> bool:
        if record.sent_at is None:
            return False
        limits = self.objectives.limits(record)
        first = record.token_times[0] if len(record.token_times) else now
        late = "ttft" in limits and first - record.sent_at > limits["ttft"]
        return late or ("e2el" in limits and now - record.sent_at > limits["e2el"])


class StopSearchError(Exception):
    """The search has to end with what it has."""


async def find_capacity(
    measure: Callable[[float], Awaitable[Trial]], search: SearchOptions
) -> CapacityFound:
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
            if (
                low is not None
                and high is not None
                and high <= low * (1 + search.tolerance)
            ):
                break
            if low is None and rate < search.start / 2**12:
                break
            rate = _next(low, high, search)
        else:
            complete = False
    except StopSearchError:
        complete = False
    return CapacityFound(low, high, trials, complete)


def _next(low: float | None, high: float | None, search: SearchOptions) -> float:
    if low is None:
        assert high is not None
        return high / 2
    if high is None:
        return min(low * 2, search.highest)
    return math.sqrt(low * high)


async def capacity(
    options: RunOptions, search: SearchOptions, directory: Path, say: Say
) -> tuple[CapacityFound, int]:
    """The whole command: every trial leaves a results directory of its own below `directory`."""
    if search.start > search.highest:
        raise LoadgenError("--highest-rate must be above --start-rate")
    terms = terms_of(options.judgement)
    if not terms.objectives:
        raise LoadgenError("capacity needs objectives: --goodput ttft:500 tpot:100")
    if options.pace.request_rate is not None or options.pace.closed_loop:
        raise LoadgenError(
            "capacity looks for the rate: leave out --request-rate and --max-concurrency"
        )
    options = _bounded(options)
    first = msgspec.structs.replace(options, pace=_at_rate(options.pace, search.start))
    plan = build_plan(first.workload, first.pace)  # wrong options are told at once
    async with ServerProbe(options.server) as server:
        suiting, plan = await suited(server, plan, first, say)
        options = msgspec.structs.replace(options, workload=suiting.workload)
        prepared = await prepare(server, plan, terms, options, say)
        claim_directory(directory)
        trials = _Trials(server, prepared, terms, options, directory, say)
        outcome = await find_capacity(trials.measure, search)
    _write(outcome, options, directory)
    if trials.status == EXIT_INTERRUPTED:
        return outcome, EXIT_INTERRUPTED
    return outcome, 0 if outcome.best is not None else EXIT_ALL_FAILED


def _bounded(options: RunOptions) -> RunOptions:
    """With a number of requests a rate where none is given: many rates are tried."""
    workload = options.workload
    drawn = workload.dataset_path is None and not workload.sessions
    if (
        not drawn
        or workload.num_prompts is not None
        or math.isfinite(workload.duration)
    ):
        return options
    workload = msgspec.structs.replace(workload, num_prompts=SEARCHED_COUNT)
    return msgspec.structs.replace(options, workload=workload)


def _at_rate(pace: PaceOptions, rate: float) -> PaceOptions:
    return msgspec.structs.replace(pace, request_rate=rate)


class _Trials:
    """Loads the server at one rate after another; `status` is the last trial's exit status."""

    def __init__(
        self,
        server: ServerProbe,
        prepared: Prepared,
        terms: Terms,
        options: RunOptions,
        directory: Path,
        say: Say,
    ) -> None:
        self._server = server
        self._prepared = prepared
        self._terms = terms
        self._options = options
        self._directory = directory
        self._say = say
        self.status = 0

    async def measure(self, rate: float) -> Trial:
        """Load the server at a rate; raises StopSearchError when the user has had enough."""
        options = msgspec.structs.replace(
            self._options,
            pace=_at_rate(self._options.pace, rate),
            report=msgspec.structs.replace(
                self._options.report, label=f"{rate:.4g} requests/s"
            ),
        )
        place = self._directory / f"rate-{rate:.4g}"
        claim_directory(place)
        plan = build_plan(options.workload, options.pace)
        count = len(plan.requests)
        attainment = self._terms.attainment
        doubt = Doubt(
            self._terms.objectives, allowed=int((1 - attainment) * count + 1e-9)
        )
        run = await load(
            self._server, self._prepared, plan, options, self._say, doubt.watch
        )
        result, health, self.status = conclude(run, self._terms, options, place)
        if self.status == EXIT_INTERRUPTED:
            raise StopSearchError
        share = result.get("attainment", 0.0)
        if run.cut_short:
            share = 1 - doubt.bad / count
        holds = not run.cut_short and share >= attainment
        trial = Trial(
            rate=rate,
            attainment=share,
            holds=holds,
            cut_short=run.cut_short,
            doubtful=bool(health.own_failures) and not holds,
            figures=result["classes"]["all"],
        )
        verdict = "holds" if holds else "fails"
        self._say(f"{rate:.4g} requests/s: {_met(trial)} met the objectives, {verdict}")
        if trial.doubtful:
            failure = health.own_failures[0]
            self._say(
                f"the load generator itself was slow: {failure.summary}; {failure.advice}"
            )
        return trial


def summary(outcome: CapacityFound) -> str:
    """One line."""
    if outcome.best is None:
        return "the objectives held at no rate that was tried"
    text = f"capacity: {outcome.best:.4g} requests/s hold the objectives"
    if outcome.failed is not None:
        text += f", they fail at {outcome.failed:.4g}"
    else:
        text += ", the highest rate allowed"
    if not outcome.complete:
        text += " (search cut short)"
    if any(trial.doubtful for trial in outcome.trials):
        text += "; doubtful: the load generator itself was late"
    return text


def table_of(outcome: CapacityFound) -> tuple[list[str], list[list[str]]]:
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
    for trial in sorted(outcome.trials, key=lambda trial: trial.rate):
        ttft = trial.figures.get("ttft", {})
        gaps = trial.figures.get("itl", {})
        numbers = (
            ttft.get("p50", ttft.get("median")),
            ttft.get("p99"),
            gaps.get("p99"),
        )
        speed = trial.figures.get("output_throughput")
        verdict = "holds" if trial.holds else "fails"
        rows.append(
            [
                f"{trial.rate:.4g}",
                _met(trial),
                verdict,
                *(shown(n, "") for n in (*numbers, speed)),
            ]
        )
    return header, rows


def _met(trial: Trial) -> str:
    return ("at most " if trial.cut_short else "") + shown(trial.attainment, "%")


def _write(outcome: CapacityFound, options: RunOptions, directory: Path) -> None:
    """capacity.json, capacity.png and report.html."""
    judgement = options.judgement
    content: dict[str, Any] = {
        "capacity": outcome.best,
        "failed_at": outcome.failed,
        "complete": outcome.complete,
        "attainment": judgement.attainment,
        "goodput": judgement.goodput,
        "goodput_long": judgement.goodput_long,
        "policy": options.watch.policy,
        "trials": [msgspec.to_builtins(trial) for trial in outcome.trials],
    }
    (directory / "capacity.json").write_text(json.dumps(content, indent=2) + "\n")
    header, rows = table_of(outcome)
    pictures = []
    if figures.available() and outcome.trials:
        picture = directory / "capacity.png"
        rates = [trial.rate for trial in outcome.trials]
        shares = [trial.attainment for trial in outcome.trials]
        figures.draw_capacity(
            rates, shares, judgement.attainment, outcome.best, picture
        )
        pictures.append(embedded("Share of requests that met all objectives", picture))
    told = summary(outcome)
    text = page(
        "capacity",
        "Capacity",
        summary=told,
        header=header,
        rows=rows,
        pictures=pictures,
    )
    (directory / "report.html").write_text(text)
    (directory / "capacity.txt").write_text(f"{told}\n\n{as_text((header, rows))}\n")
