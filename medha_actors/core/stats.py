"""Figures for metrics and the live page."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import msgspec

from medha_actors.core.live import LiveRequests
from medha_actors.core.page_store import PageStore
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.tally import TenantStats


@dataclass(slots=True)
class Totals:
    """What a scheduler counts since its start."""

    preemptions: int = 0
    batches: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0


class Tier(msgspec.Struct, frozen=True):
    """The second tiers of all groups: pages saved and loaded since the start, the share of the
    slots that hold a page, prompt tokens looked for and found there."""

    saved_pages: int = 0
    loaded_pages: int = 0
    usage: float = 0.0
    queries: int = 0
    hits: int = 0


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
    tier: Tier = Tier()
    # What all stages worked on batches with prefill and without, and what they were to
    # by the calibration
    worked_s: tuple[float, float] = (0.0, 0.0)
    calibrated_s: tuple[float, float] = (0.0, 0.0)
    tenants: tuple[TenantStats, ...] = ()  # where requests have any


def stats_of(
    live: LiveRequests,
    model: ExecutionModel,
    totals: Totals,
    in_flight: int,
    budget_s: float,
) -> Stats:
    """The figures of a scheduler; cheap."""
    usage = live.kv.usage()
    p50, p90 = model.errors()
    return Stats(
        running=len(live.decoding),
        prefilling=len(live.queue.started),
        waiting=live.queue.waiting,
        batches_in_flight=in_flight,
        kv_usage=sum(usage) / len(usage),
        kv_usage_by_group=tuple(usage),
        backlog_s=live.queue.work_s(),
        budget_s=budget_s,
        preemptions_total=totals.preemptions,
        evictions_total=live.evictions,
        prefix_cache_queries_total=live.prefix_queries,
        prefix_cache_hits_total=live.prefix_hits,
        kv_cached=live.kv.cached(),
        tier=_tier_of(live.kv.store, live.tier_queries, live.tier_hits),
        batches_total=totals.batches,
        prompt_tokens_total=totals.prompt_tokens,
        generation_tokens_total=totals.generated_tokens,
        predictor_error_p50=p50,
        predictor_error_p90=p90,
        predictor_scale_prefill=model.prefill.scale,
        predictor_scale_decode=model.decode.scale,
        worked_s=(model.prefill.worked_s, model.decode.worked_s),
        calibrated_s=(model.prefill.calibrated_s, model.decode.calibrated_s),
        tenants=_tenants(live),
    )


def _tenants(live: LiveRequests) -> tuple[TenantStats, ...]:
    queue = live.queue
    tally = queue.tally
    if not tally and not any(queue.names):
        return ()
    waiting = Counter[str]()
    backlog_s = defaultdict[str, float](float)
    for tenant in queue.names:
        loads_s = queue.of(tenant).loads_s()
        waiting[tally.name(tenant)] += len(loads_s)
        backlog_s[tally.name(tenant)] += sum(loads_s)
    running = Counter([tally.name(state.tenant) for state in live.decoding.values()])
    return tuple(
        TenantStats(
            tenant=name,
            weight=queue.shares.of(name).weight,
            waiting=waiting[name],
            running=running[name],
            backlog_s=backlog_s[name],
            prefill_s=tally.prefill_s[name],
        )
        for name in sorted({*tally.prefill_s, *waiting, *running})
    )


def _tier_of(store: PageStore, queries: int, hits: int) -> Tier:
    """The figures of a store's second tier."""
    return Tier(
        saved_pages=sum([slots.saved for slots in store.slots]),
        loaded_pages=sum([slots.loaded for slots in store.slots]),
        usage=sum([slots.usage for slots in store.slots]) / len(store.slots),
        queries=queries,
        hits=hits,
    )
