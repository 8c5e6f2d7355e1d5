"""What the scheduler tells of itself (core.stats), as families."""

from __future__ import annotations

from medha_actors.actors.telemetry.series import counter, gauge
from medha_actors.core.stats import Stats
from medha_actors.telemetry.histogram import Family, Labels


def families(stats: Stats, pages_per_group: int) -> list[Family]:
    """For `exposition`."""
    return [*_gauges(stats, pages_per_group), *_counters(stats), *_tenants(stats)]


def _gauges(stats: Stats, pages_per_group: int) -> list[Family]:
    pages: dict[Labels, float] = {}
    for group, share in enumerate(stats.kv_usage_by_group):
        used = round(share * pages_per_group)
        pages[("group", str(group)), ("state", "used")] = float(used)
        pages[("group", str(group)), ("state", "free")] = float(pages_per_group - used)
    scales = (stats.predictor_scale_prefill, stats.predictor_scale_decode)
    return [
        gauge(
            "medha_num_requests_running", "Requests past their prefill", stats.running
        ),
        gauge("medha_num_requests_prefilling", "Prefills under way", stats.prefilling),
        gauge(
            "medha_num_requests_waiting", "Requests that have not begun", stats.waiting
        ),
        gauge(
            "medha_kv_cache_usage_perc",
            "Share of the KV pages in use, 1 is all",
            stats.kv_usage,
        ),
        gauge(
            "medha_prefix_cache_usage_perc",
            "Share of the KV pages that can be found again, in use or not",
            stats.kv_cached,
        ),
        Family(
            "medha_kv_cache_pages", "gauge", "KV pages of a group, in each stage", pages
        ),
        gauge(
            "medha_batches_in_flight",
            "Batches in the pipeline",
            stats.batches_in_flight,
        ),
        gauge(
            "medha_backlog_seconds",
            "Predicted prefill work that is not dispatched",
            stats.backlog_s,
        ),
        gauge(
            "medha_batch_budget_seconds",
            "Time one batch may take in one stage",
            stats.budget_s,
        ),
        _of_kinds(
            "medha_predictor_scale",
            "gauge",
            "Online correction of the predictor",
            scales,
        ),
    ]


def _counters(stats: Stats) -> list[Family]:
    return [
        counter(
            "medha_num_preemptions_total",
            "A prefill's turn was taken by another",
            stats.preemptions_total,
        ),
        counter(
            "medha_num_evictions_total",
            "Requests that lost their KV for want of room",
            stats.evictions_total,
        ),
        counter(
            "medha_prompt_tokens_total",
            "Prompt tokens, computed or found in the prefix cache",
            stats.prompt_tokens_total,
        ),
        counter(
            "medha_prefix_cache_queries_total",
            "Prompt tokens looked for in the prefix cache",
            stats.prefix_cache_queries_total,
        ),
        counter(
            "medha_prefix_cache_hits_total",
            "Prompt tokens found in the prefix cache",
            stats.prefix_cache_hits_total,
        ),
        counter(
            "medha_generation_tokens_total",
            "Output tokens",
            stats.generation_tokens_total,
        ),
        _of_kinds(
            "medha_batch_work_seconds_total",
            "counter",
            "What all stages worked on batches",
            stats.worked_s,
        ),
        _of_kinds(
            "medha_batch_calibrated_seconds_total",
            "counter",
            "The same by the calibration at start",
            stats.calibrated_s,
        ),
    ]


def _tenants(stats: Stats) -> list[Family]:
    """By tenant, where requests have any; core/tally.py bounds their names."""
    if not stats.tenants:
        return []
    prefill: dict[Labels, float] = {}
    backlog: dict[Labels, float] = {}
    requests: dict[Labels, float] = {}
    for one in stats.tenants:
        tenant = ("tenant", one.tenant)
        prefill[(tenant,)] = one.prefill_s
        backlog[(tenant,)] = one.backlog_s
        requests[tenant, ("state", "waiting")] = float(one.waiting)
        requests[tenant, ("state", "running")] = float(one.running)
    return [
        Family(
            "medha_tenant_prefill_seconds_total",
            "counter",
            "Predicted seconds of prefill that went out",
            prefill,
        ),
        Family(
            "medha_tenant_backlog_seconds",
            "gauge",
            "Predicted prefill work that is not dispatched",
            backlog,
        ),
        Family("medha_tenant_requests", "gauge", "Requests in the scheduler", requests),
    ]


def _of_kinds(name: str, kind: str, text: str, values: tuple[float, float]) -> Family:
    """Of batches with prefill, and of those without."""
    prefill, decode = values
    series: dict[Labels, float] = {
        (("kind", "prefill"),): prefill,
        (("kind", "decode"),): decode,
    }
    return Family(name, kind, text, series)
