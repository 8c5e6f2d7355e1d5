"""Figures for metrics and the live page."""

from __future__ import annotations

import msgspec


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """The scheduler's state at an instant, and totals since the start."""

    running: int  # requests past their prefill
    prefilling: int  # prefills under way
    waiting: int  # requests that have not begun
    batches_in_flight: int
    kv_usage: float  # 0 to 1, mean of the groups
    kv_usage_by_group: tuple[float, ...]
    backlog_s: float  # predicted seconds of prefill not dispatched yet
    budget_s: float
    preemptions_total: int  # a prefill's turn was taken by another
    evictions_total: int  # a request's KV was dropped for want of room
    prefix_cache_queries_total: int  # prompt tokens looked for in the prefix cache
    prefix_cache_hits_total: int  # those of them that were found
    kv_cached: float  # 0 to 1, pages that can be found by what is in them, used or not
    batches_total: int
    prompt_tokens_total: int
    generation_tokens_total: int
    predictor_error_p50: float | None  # relative, of recent batches
    predictor_error_p90: float | None
    predictor_scale_prefill: float
    predictor_scale_decode: float
    # What all stages worked on batches with prefill and without, and what they were to by the
    # calibration
    worked_s: tuple[float, float] = (0.0, 0.0)
    calibrated_s: tuple[float, float] = (0.0, 0.0)
