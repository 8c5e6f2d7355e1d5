"""`medha-loadgen run`: one load against one server, from options to the results directory."""

from __future__ import annotations

import asyncio
import contextlib
import platform
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from loadgen.driver import Driver, Pace
from loadgen.errors import EXIT_ALL_FAILED, EXIT_INTERRUPTED, EXIT_UNHEALTHY, LoadgenError
from loadgen.health import Health, examine
from loadgen.isolated import Points, lengths_to_measure, measure_isolated, predict, read_points
from loadgen.live import LiveView
from loadgen.objectives import Objectives, parse_objectives
from loadgen.options import Options
from loadgen.plan import Plan, build_plan
from loadgen.prompts import Alphabet, PromptMaker
from loadgen.records import PlannedRequest, RequestRecord, Run
from loadgen.results import Terms, claim_directory, write_results
from loadgen.server import Model, Server
from loadgen.targets import OpenAITarget
from loadgen.workload import probes

Say = Callable[[str], None]


class Prepared(msgspec.Struct, frozen=True):
    """A server that was found fit for a plan; several loads may use it."""

    model: Model
    alphabet: Alphabet
    points: Points
    objectives: Objectives


def terms_of(options: Options) -> Terms:
    """How the run will be judged; raises LoadgenError."""
    objectives = parse_objectives(options.goodput, options.goodput_long)
    if objectives.relative and options.isolated_ttft is None:
        raise LoadgenError(
            "relative objectives (1.5x) need --isolated-ttft measure, or a file of an earlier run"
        )
    return Terms(
        objectives=objectives, percentiles=options.percentiles(), attainment=options.attainment
    )


async def prepare(server: Server, plan: Plan, terms: Terms, say: Say) -> Prepared:
    """Check the server against the plan; measure it idle and warm it up, if asked to."""
    options = server.options
    model = await server.model()
    if model.max_model_len is not None and plan.longest > model.max_model_len:
        raise LoadgenError(
            f"the longest request has {plan.longest} tokens, the model takes "
            f"{model.max_model_len}: use --max-model-len {model.max_model_len} to leave such "
            "requests out, or --scale-lengths"
        )
    alphabet = await server.alphabet(model)
    if plan.shortest_prompt <= alphabet.overhead:
        raise LoadgenError(
            f"the shortest prompt has {plan.shortest_prompt} tokens, but the server itself adds "
            f"{alphabet.overhead}"
        )
    points: Points = []
    target = OpenAITarget(server.address, server.style(model), PromptMaker(alphabet, options.seed))

    async def ask(request: PlannedRequest) -> RequestRecord:
        return await server.ask(target, request)

    try:
        for index in range(options.num_warmups):
            await ask(
                msgspec.structs.replace(
                    plan.requests[index % len(plan.requests)], index=index, kind="warmup"
                )
            )
        if options.isolated_ttft == "measure":
            lengths = lengths_to_measure([request.prompt_tokens for request in plan.requests])
            say(f"measuring the idle server at {', '.join(map(str, lengths))} prompt tokens")
            points = await measure_isolated(lengths, ask)
        elif options.isolated_ttft is not None:
            points = read_points(Path(options.isolated_ttft))
    finally:
        await target.close()
    return Prepared(model, alphabet, points, terms.objectives)


async def load(
    server: Server,
    prepared: Prepared,
    plan: Plan,
    say: Say,
    watch: Callable[[Driver], Awaitable[None]] | None = None,
) -> Run:
    """Send the plan. SIGINT and SIGTERM end it early; the records so far are returned all the same.

    `watch` runs beside the load; when it returns, the load is cut short.
    """
    options = server.options
    style = server.style(prepared.model, prepared.objectives)
    target = OpenAITarget(server.address, style, PromptMaker(prepared.alphabet, options.seed))
    pace = Pace(
        closed_loop=plan.closed_loop,
        max_concurrency=options.max_concurrency,
        ramp_up_s=options.ramp_up,
    )
    probe_tokens = max(options.probe_input_len, prepared.alphabet.overhead + 1)
    beside = (
        probes(options.probe_request_rate, probe_tokens, options.seed)
        if options.probe_request_rate
        else ()
    )
    points = prepared.points

    def expect(record: RequestRecord) -> None:
        if points:
            record.isolated_ttft_s = predict(points, record.prompt_tokens)

    driver = Driver(
        target,
        plan.requests,
        pace,
        probes=beside,
        run_id=f"lg-{time.time_ns() // 1_000_000:x}",
        on_record=expect,
    )
    title = (
        f"{options.label or options.policy or 'load'} -> {server.address.url} ({prepared.model.id})"
    )
    beside_it = (
        []
        if options.quiet
        else [LiveView(driver, title=title, interval_s=options.live_interval).show()]
    )
    beside_it += [] if watch is None else [_stop_after(watch(driver), driver)]
    _allow_many_sockets()
    tasks = [asyncio.create_task(work) for work in beside_it]
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        interrupted = True
        say("stopping; the results so far will be written (once more to leave at once)")
        driver.stop()

    started_at, cpu_before, began = time.time(), _cpu_s(), time.monotonic()
    try:
        with _on_signals(interrupt):
            duration = await driver.run()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await target.close()
    return Run(
        records=driver.records,
        duration_s=duration,
        config=configuration(options, plan, prepared),
        label=options.label,
        started_at=started_at,
        interrupted=interrupted,
        cut_short=driver.stopped and not interrupted,
        open_loop=not plan.closed_loop,
        loop_lags_s=driver.loop_lags_s,
        cpu_share=(_cpu_s() - cpu_before) / max(time.monotonic() - began, 1e-9),
        isolated=points,
        exact_prompts=prepared.alphabet.exact,
    )


def configuration(options: Options, plan: Plan, prepared: Prepared) -> dict[str, Any]:
    """config.yml: what was asked, what it came to, and where it ran."""
    return {
        **options.public(),
        "model": prepared.model.id,
        "plan": plan.describe(),
        "prompt_overhead_tokens": prepared.alphabet.overhead,
        "machine": {"python": platform.python_version(), "system": platform.platform()},
        "command": sys.argv[1:] if not options.header else [],
    }


def conclude(
    run: Run, terms: Terms, options: Options, directory: Path
) -> tuple[dict[str, Any], Health, int]:
    """Judge and write a run; returns result.json, the health and the exit status."""
    health = examine(run, late_s=options.late_threshold_ms / 1000, exact_outputs=options.ignore_eos)
    result = write_results(run, terms, health, directory)
    if run.interrupted:
        return result, health, EXIT_INTERRUPTED
    if not result["completed"]:
        return result, health, EXIT_ALL_FAILED
    return result, health, EXIT_UNHEALTHY if options.fail_unhealthy and not health.passed else 0


async def run(options: Options, directory: Path, say: Say) -> tuple[dict[str, Any], Health, int]:
    """The whole command."""
    terms = terms_of(options)
    plan = build_plan(options)
    say(plan.describe())
    async with Server(options) as server:
        prepared = await prepare(server, plan, terms, say)
        claim_directory(directory)
        finished = await load(server, prepared, plan, say)
    return conclude(finished, terms, options, directory)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def _stop_after(work: Awaitable[None], driver: Driver) -> None:
    await work
    driver.stop()


def _allow_many_sockets() -> None:
    """Every request under way has a socket of its own; the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(
                resource.RLIMIT_NOFILE,
                (hard if hard != resource.RLIM_INFINITY else 1_048_576, hard),
            )


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
    except (
        NotImplementedError,
        RuntimeError,
        ValueError,
    ):  # not in the main thread, or not on this system
        yield
        return
    try:
        yield
    finally:
        for number in stops:
            loop.remove_signal_handler(number)
