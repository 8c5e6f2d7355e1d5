"""`medha-loadgen capacity`: the highest rate at which the objectives hold.

Every rate sees the same requests in the same pattern, only denser.
"""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from loadgen.capacity.doubt import Doubt
from loadgen.capacity.outcome import met, write_outcome
from loadgen.capacity.search import (
    CapacityFound,
    SearchOptions,
    StopSearchError,
    Trial,
    find_capacity,
)
from loadgen.errors import EXIT_ALL_FAILED, EXIT_INTERRUPTED, LoadgenError
from loadgen.judge.options import Terms
from loadgen.options import RunOptions
from loadgen.preparation import Prepared, prepare, suited, terms_of
from loadgen.run import conclude, load
from loadgen.send.probe import ServerProbe
from loadgen.show.output import Say, claim_directory
from loadgen.workload.options import SEARCHED_COUNT, PaceOptions
from loadgen.workload.plan import build_plan


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
    write_outcome(outcome, options, directory)
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
        self._say(f"{rate:.4g} requests/s: {met(trial)} met the objectives, {verdict}")
        if trial.doubtful:
            failure = health.own_failures[0]
            self._say(
                f"the load generator itself was slow: {failure.summary}; {failure.advice}"
            )
        return trial
