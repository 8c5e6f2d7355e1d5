"""`medha-loadgen run`: one load against one server, from options to the results directory."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from loadgen.errors import EXIT_ALL_FAILED, EXIT_INTERRUPTED, EXIT_UNHEALTHY
from loadgen.judge.health import Health, examine
from loadgen.judge.isolated import predict
from loadgen.judge.options import Terms
from loadgen.options import RunOptions, public
from loadgen.preparation import Prepared, prepare, suited, terms_of, unlike_others
from loadgen.records import PlannedRequest, RequestRecord, RunRecord
from loadgen.send.driver import Driver, Pace
from loadgen.send.probe import ServerProbe
from loadgen.send.prompts import PromptMaker
from loadgen.send.targets import OpenAITarget
from loadgen.show.output import Say, claim_directory
from loadgen.show.progress import ProgressView
from loadgen.show.results import write_results
from loadgen.workload.mixes import probes
from loadgen.workload.plan import Plan, build_plan

# Runs beside a load; when it returns, the load is cut short.
Watch = Callable[[Driver], Awaitable[None]]


async def load(
    server: ServerProbe,
    prepared: Prepared,
    plan: Plan,
    options: RunOptions,
    say: Say,
    watch: Watch | None = None,
) -> RunRecord:
    """Send the plan. SIGINT and SIGTERM end it early; the records so far are returned all the same.

    `watch` runs beside the load; when it returns, the load is cut short.
    """
    driver = _driver(server, prepared, plan, options)
    beside = _start_beside(driver, server, prepared, options, watch)
    _allow_many_sockets()
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = True
        say("stopping; the results so far will be written (once more to leave at once)")
        driver.stop()

    started_at = time.time()
    cpu_before = cpu_seconds()
    began = time.monotonic()
    try:
        with _on_signals(interrupt):
            duration = await driver.run()
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await driver.target.close()
    return RunRecord(
        records=driver.records,
        duration_s=duration,
        config=configuration(options, plan, prepared),
        label=options.report.label,
        started_at=started_at,
        interrupted=interrupted,
        cut_short=driver.stopped and not interrupted,
        open_loop=not plan.closed_loop,
        loop_lags_s=driver.loop_lags_s,
        cpu_share=(cpu_seconds() - cpu_before) / max(time.monotonic() - began, 1e-9),
        isolated=prepared.points,
        exact_prompts=prepared.alphabet.exact,
    )


def _driver(
    server: ServerProbe, prepared: Prepared, plan: Plan, options: RunOptions
) -> Driver:
    """What sends the plan, with probes beside it where they are asked for."""
    seed = options.workload.seed
    style = server.style(prepared.model, prepared.objectives)
    tokens = seed if options.server.same_prompts else unlike_others(seed)
    target = OpenAITarget(server.address, style, PromptMaker(prepared.alphabet, tokens))
    pace = Pace(
        closed_loop=plan.closed_loop,
        max_concurrency=options.pace.max_concurrency,
        ramp_up_s=options.pace.ramp_up,
    )
    beside: Iterable[PlannedRequest] = ()
    if options.pace.probe_request_rate:
        tokens = max(options.pace.probe_input_len, prepared.alphabet.overhead + 1)
        beside = probes(options.pace.probe_request_rate, tokens, seed)

    def expect(record: RequestRecord) -> None:
        if prepared.points:
            record.isolated_ttft_s = predict(prepared.points, record.prompt_tokens)

    return Driver(
        target,
        plan.requests,
        pace,
        probes=beside,
        run_id=f"lg-{time.time_ns() // 1_000_000:x}",
        on_record=expect,
    )


def _start_beside(
    driver: Driver,
    server: ServerProbe,
    prepared: Prepared,
    options: RunOptions,
    watch: Watch | None,
) -> list[asyncio.Task[None]]:
    """What runs while the driver does: the panel, unless it is to be quiet, and the watch."""
    tasks = []
    if not options.watch.quiet:
        name = options.report.label or options.watch.policy or "load"
        title = f"{name} -> {server.address.url} ({prepared.model.id})"
        view = ProgressView(driver, title=title, interval_s=options.watch.live_interval)
        tasks.append(asyncio.create_task(view.show()))
    if watch is not None:
        tasks.append(asyncio.create_task(_stop_after(watch(driver), driver)))
    return tasks


def configuration(
    options: RunOptions, plan: Plan, prepared: Prepared
) -> dict[str, Any]:
    """config.yml: what was asked, what it came to, and where it ran."""
    asked = public(
        options.server,
        options.workload,
        options.pace,
        options.judgement,
        options.report,
        options.watch,
    )
    return {
        **asked,
        "model": prepared.model.id,
        "plan": plan.describe(),
        "prompt_overhead_tokens": prepared.alphabet.overhead,
        "machine": {"python": platform.python_version(), "system": platform.platform()},
        "command": sys.argv[1:] if not options.server.header else [],
    }


def conclude(
    run: RunRecord, terms: Terms, options: RunOptions, directory: Path
) -> tuple[dict[str, Any], Health, int]:
    """Judge and write a run; returns result.json, the health and the exit status."""
    health = examine(
        run,
        late_s=options.judgement.late_threshold_ms / 1000,
        exact_outputs=options.server.ignore_eos,
    )
    result = write_results(run, terms, health, directory)
    if run.interrupted:
        return result, health, EXIT_INTERRUPTED
    if not result["completed"]:
        return result, health, EXIT_ALL_FAILED
    unhealthy = options.watch.fail_unhealthy and not health.passed
    return result, health, EXIT_UNHEALTHY if unhealthy else 0


async def run(
    options: RunOptions, directory: Path, say: Say
) -> tuple[dict[str, Any], Health, int]:
    """The whole command."""
    terms = terms_of(options.judgement)
    plan = build_plan(options.workload, options.pace)  # wrong options are told at once
    async with ServerProbe(options.server) as server:
        options, plan = await suited(server, plan, options, say)
        say(plan.describe())
        prepared = await prepare(server, plan, terms, options, say)
        claim_directory(directory)
        finished = await load(server, prepared, plan, options, say)
    return conclude(finished, terms, options, directory)


def cpu_seconds() -> float:
    """CPU time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def _stop_after(work: Awaitable[None], driver: Driver) -> None:
    await work
    driver.stop()


def _allow_many_sockets() -> None:
    """Every request under way has a socket of its own; the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft < hard:
        wanted = 1_048_576 if hard == resource.RLIM_INFINITY else hard
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@contextlib.contextmanager
def _on_signals(interrupt: Callable[[], None]) -> Iterator[None]:
    """The first signal ends the load in order, a second one at once."""
    loop = asyncio.get_running_loop()
    stops = (signal.SIGINT, signal.SIGTERM)

    def stop() -> None:
        interrupt()
        for number in stops:
            loop.remove_signal_handler(number)

    try:
        for number in stops:
            loop.add_signal_handler(number, stop)
    except (NotImplementedError, RuntimeError, ValueError):
        # not in the main thread, or not on this system
        yield
        return
    try:
        yield
    finally:
        for number in stops:
            loop.remove_signal_handler(number)
