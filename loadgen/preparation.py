"""What happens before a load: the server is found, measured where the load is to suit it, checked
against the plan, measured idle and warmed up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from loadgen.errors import LoadgenError
from loadgen.judge.isolated import (
    Points,
    lengths_to_measure,
    measure_isolated,
    read_points,
)
from loadgen.judge.objectives import Objectives
from loadgen.judge.options import JudgementOptions, Terms
from loadgen.options import RunOptions
from loadgen.records import Ask, PlannedRequest, RequestRecord
from loadgen.send.probe import Model, ServerProbe
from loadgen.send.prompts import Alphabet, PromptMaker
from loadgen.send.speed import measure_server
from loadgen.send.targets import OpenAITarget
from loadgen.show.output import Say
from loadgen.workload.plan import Plan, build_plan
from loadgen.workload.suiting import left_open, suit


class Prepared(msgspec.Struct, frozen=True):
    """A server that was found fit for a plan; several loads may use it."""

    model: Model
    alphabet: Alphabet
    points: Points
    objectives: Objectives


def terms_of(judgement: JudgementOptions) -> Terms:
    """How the run will be judged; raises LoadgenError."""
    terms = judgement.terms()
    if terms.objectives.relative and judgement.isolated_ttft is None:
        raise LoadgenError(
            "relative objectives (1.5x) need --isolated-ttft measure, or a file of an earlier run"
        )
    return terms


async def prepare(
    server: ServerProbe, plan: Plan, terms: Terms, options: RunOptions, say: Say
) -> Prepared:
    """Check the server against the plan; measure it idle and warm it up, if asked to."""
    model = await server.model()
    _refuse_too_long(plan, model)
    alphabet = await server.alphabet(model, text=plan.sessions > 0)
    if plan.shortest_prompt <= alphabet.overhead:
        raise LoadgenError(
            f"the shortest prompt has {plan.shortest_prompt} tokens, but the server itself adds "
            f"{alphabet.overhead}"
        )
    async with _one_by_one(server, model, alphabet, options) as ask:
        await _warm_up(plan, options.pace.num_warmups, ask)
        points = await _isolated(plan, options.judgement.isolated_ttft, ask, say)
    return Prepared(model, alphabet, points, terms.objectives)


async def suited(
    server: ServerProbe, plan: Plan, options: RunOptions, say: Say
) -> tuple[RunOptions, Plan]:
    """Options that suit the server, and their plan, where lengths or the pace are left open."""
    open_ones = left_open(options.workload, options.pace)
    if not open_ones.anything:
        return options, plan
    model = await server.model()
    if not open_ones.lengths:
        _refuse_too_long(plan, model)
    alphabet = await server.alphabet(model)
    async with _one_by_one(server, model, alphabet, options) as ask:
        found = await measure_server(ask, model.max_model_len, alphabet.overhead)
    workload, pace, flags = suit(options.workload, options.pace, found)
    chosen = " ".join(f"{name} {value}" for name, value in flags.items())
    say(
        f"a request alone: about {found.prompt_tokens_per_s:,.0f} prompt tokens/s, "
        f"{1000 * found.token_s:.3g} ms a token; so: {chosen}"
    )
    options = msgspec.structs.replace(options, workload=workload, pace=pace)
    return options, build_plan(workload, pace)


def _refuse_too_long(plan: Plan, model: Model) -> None:
    if model.max_model_len is not None and plan.longest > model.max_model_len:
        raise LoadgenError(
            f"the longest request has {plan.longest} tokens, the model takes "
            f"{model.max_model_len}: use --max-model-len {model.max_model_len} to leave such "
            "requests out, or --scale-lengths"
        )


@contextlib.asynccontextmanager
async def _one_by_one(
    server: ServerProbe, model: Model, alphabet: Alphabet, options: RunOptions
) -> AsyncIterator[Ask]:
    """Asks the server for one request at a time, with prompts unlike all others."""
    prompts = PromptMaker(alphabet, unlike_others(options.workload.seed))
    target = OpenAITarget(server.address, server.style(model), prompts)

    async def ask(request: PlannedRequest) -> RequestRecord:
        return await server.ask(target, request)

    try:
        yield ask
    finally:
        await target.close()


async def _warm_up(plan: Plan, count: int, ask: Ask) -> None:
    """As long as the plan's first requests, one by one; they share no beginning with the load."""
    for index in range(count):
        request = plan.requests[index % len(plan.requests)]
        await ask(
            PlannedRequest(
                index=index,
                prompt_tokens=request.prompt_tokens,
                output_tokens=request.output_tokens,
                kind="warmup",
            )
        )


async def _isolated(plan: Plan, source: str | None, ask: Ask, say: Say) -> Points:
    """Times to first token on the idle server: measured now, of an earlier run, or none."""
    if source is None:
        return []
    if source != "measure":
        return read_points(Path(source))
    lengths = lengths_to_measure([request.prompt_tokens for request in plan.requests])
    say(f"measuring the idle server at {', '.join(map(str, lengths))} prompt tokens")
    return await measure_isolated(lengths, ask)


def unlike_others(seed: int) -> str:
    """A seed for the tokens of prompts that no server has in its cache from an earlier load."""
    return f"{seed}/{time.time_ns()}"
