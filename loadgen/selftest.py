"""`medha-loadgen selftest`: how much load this machine can generate, and how truly it is measured.

The metronome's tokens are due at known instants; what is reported on top of them is the error of
the measurement (and of the metronome, which is a process on the same machine).
"""

from __future__ import annotations

import asyncio
import math
import time
from itertools import pairwise
from typing import Annotated, Any

import msgspec

from loadgen.errors import LoadgenError
from loadgen.flags import flag
from loadgen.judge.latencies import percentile
from loadgen.metronome import Metronome
from loadgen.records import RequestRecord
from loadgen.run import cpu_seconds
from loadgen.send.driver import Driver, Pace
from loadgen.send.prompts import PromptMaker, ids_alphabet
from loadgen.send.targets import OpenAITarget, RequestStyle, parse_address
from loadgen.workload.arrivals import arrival_times
from loadgen.workload.mixes import Mix, synthetic, with_arrivals


class SelfTestOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the self-test asks of this machine."""

    rate: Annotated[float, flag("requests/s", name="--request-rate", gt=0)] = 2000.0
    tokens_per_s: Annotated[float, flag(gt=0)] = 20_000.0
    seconds: Annotated[float, flag("seconds", name="--duration", gt=0)] = 5.0
    first_token_s: float = 0.02
    gap_s: float = 0.01

    def refuse_infinity(self) -> None:
        """Raise LoadgenError where a number is none that a machine could reach."""
        if not math.isfinite(self.rate * self.tokens_per_s * self.seconds):
            raise LoadgenError(
                "--request-rate, --tokens-per-s and --duration must be finite"
            )


def selftest(asked: SelfTestOptions) -> dict[str, Any]:
    """Drive the metronome; returns the figures reached."""
    asked.refuse_infinity()
    with Metronome(first_token_s=asked.first_token_s, gap_s=asked.gap_s) as url:
        return asyncio.run(_drive(url, asked))


async def _drive(url: str, asked: SelfTestOptions) -> dict[str, Any]:
    output = max(1, round(asked.tokens_per_s / asked.rate))
    mix = Mix(input_len="64", output_len=str(output))
    requests = with_arrivals(
        synthetic(mix, max(1, round(asked.rate * asked.seconds)), 0),
        arrival_times(asked.rate, 0, kind="poisson"),
    )
    prompts = PromptMaker(ids_alphabet(tuple(range(1000, 8000))), 0)
    target = OpenAITarget(parse_address(url), RequestStyle(model="metronome"), prompts)
    driver = Driver(target, requests, Pace())
    cpu_before = cpu_seconds()
    started = time.monotonic()
    try:
        duration = await driver.run()
    finally:
        await target.close()
    cpu = (cpu_seconds() - cpu_before) / (time.monotonic() - started)
    return {
        "cpu_share": round(cpu, 3),
        **_figures(driver.records, duration, driver.loop_lags_s, asked),
    }


def _figures(
    records: list[RequestRecord],
    duration: float,
    lags: list[float],
    asked: SelfTestOptions,
) -> dict[str, Any]:
    late = []
    ttft = []
    gaps = []
    for record in records:
        sent = record.sent_at or 0.0
        late.append(sent - record.released_at)
        ttft += [
            instant - sent - asked.first_token_s for instant in record.token_times[:1]
        ]
        gaps += [
            after - before - asked.gap_s
            for before, after in pairwise(record.token_times)
        ]
    return {
        "requests": len(records),
        "failed": sum(not record.completed for record in records),
        "requests_per_s": round(len(records) / duration, 1),
        "tokens_per_s": round(
            sum(len(record.token_times) for record in records) / duration, 1
        ),
        "late_ms": _percentiles(late),
        "loop_lag_ms": _percentiles(lags),
        "ttft_error_ms": _percentiles(ttft),
        "gap_error_ms": _percentiles(gaps),
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    """P50, P99 and the largest, in milliseconds."""
    if not seconds:
        return {}
    picks = {"p50": 50, "p99": 99, "max": 100}
    return {
        name: round(1000 * percentile(seconds, percent), 2)
        for name, percent in picks.items()
    }
