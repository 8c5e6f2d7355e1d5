"""From records to figures. An undefined metric is absent: never 0, never NaN.

| name            | of one request                                  | also called        |
| ttft            | request sent -> first event with content        | veeksha's ttfc     |
| itl             | gaps between events with content, a list        | tbc, TBT           |
| tpot            | (e2el - ttft) / (tokens - 1)                    |                    |
| e2el            | request sent -> last event with content         | end_to_end_latency |
| normalized_ttft | ttft / ttft of such a prompt on the idle server |                    |

Latencies are those of completed requests. A failed request has none, so read them beside the
completion rate: it counts against the goodput, which is the requests per second that met every
objective.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np

from loadgen.judge.latencies import Values, percentile
from loadgen.judge.objectives import Objectives, deadlines
from loadgen.judge.promises import kept_of
from loadgen.records import LONG, PROBE, SHORT, RequestRecord, RunRecord

LATENCIES = ("ttft", "itl", "tpot", "e2el", "normalized_ttft")
# reported in milliseconds; normalised TTFT has no unit
_MS = {"ttft", "itl", "tpot", "e2el"}


class RequestMetrics(msgspec.Struct, kw_only=True):
    """The figures of one request, in seconds; None: undefined."""

    record: RequestRecord
    ttft: float | None = None
    itl: Sequence[float] = ()
    tpot: float | None = None
    e2el: float | None = None
    normalized_ttft: float | None = None
    lateness: float | None = None  # the load generator's own fault
    # met every objective; None: there are none, or it was cancelled
    good: bool | None = None
    missed_deadlines: int | None = None
    deadlines: int | None = None

    @property
    def fluidity(self) -> float | None:
        """Share of token deadlines met."""
        if not self.deadlines or self.missed_deadlines is None:
            return None
        return 1 - self.missed_deadlines / self.deadlines

    def values(self, metric: str) -> Sequence[float]:
        """What this request adds to a distribution."""
        if metric == "itl":
            return self.itl
        value = getattr(self, metric)
        return () if value is None else (value,)


def measure(record: RequestRecord, objectives: Objectives) -> RequestMetrics:
    """One request's figures."""
    figures = RequestMetrics(record=record)
    if record.sent_at is not None:
        figures.lateness = max(0.0, record.sent_at - record.released_at)
    limits = objectives.limits(record)
    sent = record.sent_at
    times = record.token_times
    if record.completed and sent is not None and len(times):
        figures.ttft = times[0] - sent
        figures.e2el = times[-1] - sent
        figures.itl = array("d", [after - before for before, after in pairwise(times)])
        if record.generated_tokens > 1:
            figures.tpot = (figures.e2el - figures.ttft) / (record.generated_tokens - 1)
        if record.isolated_ttft_s:
            figures.normalized_ttft = figures.ttft / record.isolated_ttft_s
        if "ttft" in limits and "tpot" in limits:
            arrivals = [instant - sent for instant in times]
            figures.missed_deadlines, figures.deadlines = deadlines(
                arrivals, limits["ttft"], limits["tpot"]
            )
    if objectives and not record.cancelled:
        figures.good = record.completed and _meets(figures, limits)
    return figures


def _meets(figures: RequestMetrics, limits: dict[str, float]) -> bool:
    """A metric that this answer cannot have (TPOT of one token) is no objection."""
    measured = {metric: getattr(figures, metric) for metric in limits}
    return all(
        value is None or value <= limits[metric] for metric, value in measured.items()
    )


def measure_all(run: RunRecord, objectives: Objectives) -> list[RequestMetrics]:
    """Every request of a run, in the order they were sent."""
    return [measure(record, objectives) for record in run.records]


def by_warmth(requests: Iterable[RequestMetrics]) -> dict[str, list[RequestMetrics]]:
    """The load by what a cache without bounds would know of each prompt: at least half, or less;
    empty if the workload shares nothing."""
    load = [request for request in load_of(requests) if request.record.warm is not None]
    parts = {
        "cold": [request for request in load if not request.record.warm],
        "warm": [request for request in load if request.record.warm],
    }
    return {name: part for name, part in parts.items() if part}


def load_of(
    requests: Iterable[RequestMetrics], kind: str | None = None
) -> list[RequestMetrics]:
    """The requests of one class; `None` is all of the load, which leaves probes out."""
    return [
        request
        for request in requests
        if (request.record.kind == kind if kind else request.record.kind != PROBE)
    ]


def classes_of(requests: Iterable[RequestMetrics]) -> list[str]:
    """The classes that occur, in the order they are shown."""
    present = {request.record.kind for request in requests}
    return [kind for kind in (SHORT, LONG, PROBE) if kind in present]


def values_of(requests: Iterable[RequestMetrics], metric: str) -> Values:
    """All values of a metric, sorted."""
    collected = array("d")
    for request in requests:
        collected.extend(request.values(metric))
    return (
        np.sort(np.frombuffer(collected, dtype=np.float64))
        if collected
        else np.empty(0)
    )


def distribution(
    requests: Iterable[RequestMetrics], metric: str, percentiles: Sequence[float]
) -> dict[str, float] | None:
    """Count, mean, spread and percentiles, in milliseconds where the metric is a time; None: no
    value at all."""
    values = values_of(requests, metric)
    if not len(values):
        return None
    unit = 1000.0 if metric in _MS else 1.0
    figures = {
        "count": len(values),
        "mean": unit * float(values.mean()),
        "std": unit * float(values.std()),
        "min": unit * float(values[0]),
        "median": unit * percentile(values, 50),
        "max": unit * float(values[-1]),
    }
    return figures | {
        f"p{percent:g}": unit * percentile(values, percent) for percent in percentiles
    }


def summarise(
    requests: list[RequestMetrics],
    duration_s: float,
    percentiles: Sequence[float],
    *,
    goodput: bool,
) -> dict[str, Any]:
    """The figures of one class of requests."""
    records = [request.record for request in requests]
    completed = [record for record in records if record.completed]
    cancelled = sum(record.cancelled for record in records)
    settled = len(records) - cancelled
    prompt = sum(
        record.usage_prompt_tokens or record.prompt_tokens for record in completed
    )
    output = sum(record.generated_tokens for record in completed)
    figures: dict[str, Any] = {
        "requests": len(records),
        "completed": len(completed),
        "failed": settled - len(completed),
        "cancelled": cancelled,
        "input_tokens": prompt,
        "output_tokens": output,
    }
    if settled:
        figures["completion_rate"] = len(completed) / settled
    if duration_s > 0:
        figures["request_throughput"] = len(completed) / duration_s
        figures["output_throughput"] = output / duration_s
        figures["total_token_throughput"] = (prompt + output) / duration_s
    if goodput and settled:
        good = sum(request.good is True for request in requests)
        figures["attainment"] = good / settled
        if duration_s > 0:
            figures["request_goodput"] = good / duration_s
    figures |= _fluidity(requests) | hits_of(completed) | kept_of(completed)
    for metric in LATENCIES:
        spread = distribution(requests, metric, percentiles)
        if spread:
            figures[metric] = spread
    return figures


def hits_of(completed: Sequence[RequestRecord]) -> dict[str, Any]:
    """Tokens of prompts that came from the server's cache, by its account, and their share; and the
    share that a cache without bounds would have had, by the plan."""
    # nothing to tell of a workload that shares nothing, unless there were hits all the same
    told = [record for record in completed if record.cached_tokens is not None]
    figures: dict[str, Any] = {}
    prompt = sum(record.usage_prompt_tokens or record.prompt_tokens for record in told)
    cached = sum(record.cached_tokens or 0 for record in told)
    shared = [record for record in completed if record.known_tokens is not None]
    if prompt and (cached or shared):
        figures |= {"cached_tokens": cached, "hit_rate": cached / prompt}
    planned = sum(record.prompt_tokens for record in shared)
    if planned:
        figures["hit_bound"] = (
            sum(record.known_tokens or 0 for record in shared) / planned
        )
    return figures


def _fluidity(requests: list[RequestMetrics]) -> dict[str, float]:
    """Share of token deadlines met: mean over requests; and missed, over all deadlines of the
    class."""
    indexes = [request.fluidity for request in requests if request.fluidity is not None]
    total = sum(request.deadlines or 0 for request in requests)
    if not indexes or not total:
        return {}
    missed = sum(request.missed_deadlines or 0 for request in requests)
    return {
        "fluidity_index": float(np.mean(indexes)),
        "deadline_miss_rate": missed / total,
    }


def errors_of(requests: Iterable[RequestMetrics]) -> dict[str, int]:
    """Failures by message, the most frequent first."""
    failed = (request.record for request in requests if not request.record.cancelled)
    return dict(
        Counter(record.error for record in failed if record.error).most_common()
    )
