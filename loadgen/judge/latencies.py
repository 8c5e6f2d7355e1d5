"""Latencies of records as sorted arrays, and their percentiles.

Unlike `loadgen.judge.metrics` they ask for no objectives and take what failed records have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from loadgen.records import RequestRecord

Values: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"


def percentile(values: Sequence[float] | Values, percent: float) -> float:
    """Interpolated between the neighbours, as vLLM does; of nothing it is not a number."""
    return float(np.percentile(values, percent)) if len(values) else math.nan


def ttfts(
    records: Sequence[RequestRecord], kind: str | None = None, normalised: bool = False
) -> Values:
    """Sorted times to first token, of one class or all, in seconds or relative to the idle
    server."""
    times = []
    for record in _of(records, kind):
        if len(record.token_times) and record.sent_at is not None:
            seconds = record.token_times[0] - record.sent_at
            times.append(
                seconds / (record.isolated_ttft_s or 1.0) if normalised else seconds
            )
    return np.sort(np.array(times))


def gaps(records: Sequence[RequestRecord], kind: str | None = None) -> Values:
    """Sorted times between tokens in seconds."""
    between = [np.diff(record.token_times) for record in _of(records, kind)]
    return np.sort(np.concatenate(between)) if between else np.empty(0)


def tpots(records: Sequence[RequestRecord], kind: str | None = None) -> Values:
    """Sorted mean times between a request's tokens."""
    means = []
    for record in _of(records, kind):
        count = len(record.token_times)
        if count > 1:
            means.append((record.token_times[-1] - record.token_times[0]) / (count - 1))
    return np.sort(np.array(means))


def _of(records: Sequence[RequestRecord], kind: str | None) -> list[RequestRecord]:
    return [record for record in records if kind in (None, record.kind)]
