"""The figures of the second tier, under vLLM's names where there are any."""

from __future__ import annotations

from medha_actors.actors.telemetry.series import counter, gauge
from medha_actors.core.stats import Tier
from medha_actors.telemetry.histogram import Family


def families(tier: Tier) -> list[Family]:
    """Of all groups together, for `exposition`."""
    return [
        counter(
            "medha_external_prefix_cache_queries_total",
            "Prompt tokens looked for in the second tier",
            tier.queries,
        ),
        counter(
            "medha_external_prefix_cache_hits_total",
            "Prompt tokens that came from the second tier",
            tier.hits,
        ),
        counter(
            "medha_kv_offload_store_pages_total",
            "KV pages saved to the second tier",
            tier.saved_pages,
        ),
        counter(
            "medha_kv_offload_load_pages_total",
            "KV pages loaded from the second tier",
            tier.loaded_pages,
        ),
        gauge(
            "medha_kv_offload_usage_perc",
            "Share of the second tier that holds pages, 1 is all",
            tier.usage,
        ),
    ]
