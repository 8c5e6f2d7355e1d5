"""`medha-loadgen selftest`: how much load this machine can generate, and how truly it is measured.

The metronome's tokens are due at known instants; what is reported on top of them is the error of
the measurement (and of the metronome, which is a process on the same machine).
"""

from __future__ import annotations

import asyncio
import resource
import time
from itertools import pairwise
from typing import Any

import msgspec

from loadgen.arrivals import arrival_times
from loadgen.driver import Driver, Pace
from loadgen.metronome import Metronome
from loadgen.prompts import PromptMaker, ids_alphabet
from loadgen.records import RequestRecord
from loadgen.targets import OpenAITarget, RequestStyle, parse_address
from loadgen.workload import Mix, synthetic, with_arrivals


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What the self-test asks for."""

    rate: float = 2000.0
    tokens_per_s: float = 20_000.0
    seconds: float = 5.0
    first_token_s: float = 0.02
    gap_s: float = 0.01


def selftest(load: Load) -> dict[str, Any]:
    """Drive the metronome; returns the figures reached."""
    with Metronome(first_token_s=load.first_token_s, gap_s=load.gap_s) as url:
        return asyncio.run(_drive(url, load))


async def _drive(url: str, load: Load) -> dict[str, Any]:
    output = max(1, round(load.tokens_per_s / load.rate))
    mix = Mix(input_len="64", output_len=str(output))
    requests = with_arrivals(
        synthetic(mix, max(1, round(load.rate * load.seconds)), 0),
        arrival_times(load.rate, 0, kind="poisson"),
    )
    prompts = PromptMaker(ids_alphabet(tuple(range(1000, 8000))), 0)
    target = OpenAITarget(parse_address(url), RequestStyle(model="metronome"), prompts)
    driver = Driver(target, requests, Pace())
    before, started = _cpu_s(), time.monotonic()
    try:
        duration = await driver.run()
    finally:
        await target.close()
    cpu = (_cpu_s() - before) / (time.monotonic() - started)
    return {
        "cpu_share": round(cpu, 3),
        **_figures(driver.records, duration, driver.loop_lags_s, load),
    }


def _figures(
    records: list[RequestRecord], duration: float, lags: list[float], load: Load
) -> dict[str, Any]:
    late, ttft, gaps = [], [], []
    for record in records:
        sent = record.sent_at or 0.0
        late.append(sent - record.released_at)
        ttft += [instant - sent - load.first_token_s for instant in record.token_times[:1]]
        gaps += [after - before - load.gap_s for before, after in pairwise(record.token_times)]
    return {
        "requests": len(records),
        "failed": sum(not record.completed for record in records),
        "requests_per_s": round(len(records) / duration, 1),
        "tokens_per_s": round(sum(len(record.token_times) for record in records) / duration, 1),
        "late_ms": _percentiles(late),
        "loop_lag_ms": _percentiles(lags),
        "ttft_error_ms": _percentiles(ttft),
        "gap_error_ms": _percentiles(gaps),
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    """P50, P99 and the largest, in milliseconds."""
    if not seconds:
        return {}
    ordered = sorted(seconds)
    picks = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {
        name: round(1000 * ordered[round(share * (len(ordered) - 1))], 2)
        for name, share in picks.items()
    }


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
