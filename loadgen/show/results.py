"""Writes the results directory: veeksha's tree, vLLM's flat `result.json`, the figures and the
report.

    <run>/result.json                 vLLM's keys, then ours (policy, health, classes)
          report.html                 one self-contained page
          config.yml  health_check_results.txt
          metrics/                    request_level_metrics.jsonl, summary_stats.json,
                                      slo_results.json, throughput_metrics.json,
                                      chrome_trace.json, <metric>.csv, <metric>.png
          traces/trace.jsonl          what was sent, to be replayed

Everything is made from a Run; whether it was measured or simulated makes no difference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from loadgen.judge.health import Health
from loadgen.judge.latencies import percentile
from loadgen.judge.metrics import (
    LATENCIES,
    RequestMetrics,
    by_warmth,
    classes_of,
    errors_of,
    load_of,
    measure_all,
    summarise,
    values_of,
)
from loadgen.judge.objectives import Objectives
from loadgen.judge.options import Terms
from loadgen.records import PROBE, RunRecord
from loadgen.show.layout import VEEKSHA, cdf_csv, chrome_trace, request_row, trace_row
from loadgen.show.report import write_report

# figures that stand in result.json under the same names
_COPIED = (
    "request_throughput",
    "request_goodput",
    "output_throughput",
    "total_token_throughput",
    "attainment",
    "completion_rate",
    "fluidity_index",
    "deadline_miss_rate",
    "announced_true",
    "announced_late",
    "deadlines_met",
    "cached_tokens",
    "hit_rate",
    "hit_bound",
)


def write_results(
    run: RunRecord, terms: Terms, health: Health, directory: Path
) -> dict[str, Any]:
    """Write everything into an existing directory; returns what is in result.json."""
    requests = measure_all(run, terms.objectives)
    metrics = directory / "metrics"
    traces = directory / "traces"
    metrics.mkdir()
    traces.mkdir()
    result = flat_result(run, requests, terms, health)
    _write_json(directory / "result.json", result)
    (directory / "config.yml").write_bytes(msgspec.yaml.encode(run.config))
    (directory / "health_check_results.txt").write_text(health.text())
    _write_lines(
        metrics / "request_level_metrics.jsonl",
        (request_row(request) for request in requests),
    )
    _write_lines(
        traces / "trace.jsonl",
        (trace_row(record) for record in run.records if record.kind != PROBE),
    )
    _write_json(metrics / "summary_stats.json", summary_stats(run, requests))
    _write_json(
        metrics / "throughput_metrics.json", throughput_metrics(requests, result)
    )
    _write_json(metrics / "slo_results.json", slo_results(requests, terms))
    _write_json(
        metrics / "chrome_trace.json",
        {"traceEvents": list(chrome_trace(requests)), "displayTimeUnit": "ms"},
    )
    if run.isolated:
        _write_json(directory / "isolated_ttft.json", {"points": run.isolated})
    for metric in LATENCIES:
        table = cdf_csv(requests, metric)
        if table is not None:
            (metrics / f"{VEEKSHA[metric][0]}.csv").write_text(table)
    write_report(directory, result, requests, health)
    return result


def flat_result(
    run: RunRecord, requests: list[RequestMetrics], terms: Terms, health: Health
) -> dict[str, Any]:
    """vLLM's keys (those that can be known), the label and verdict, and the figures of every
    class."""
    load = load_of(requests)
    figures = summarise(
        load, run.duration_s, terms.percentiles, goodput=bool(terms.objectives)
    )
    wanted = run.config
    result: dict[str, Any] = {
        "date": datetime.fromtimestamp(run.started_at, UTC).strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": "simulation" if run.simulated else "openai",
        "label": run.label or None,
        "policy": wanted.get("policy"),
        "model_id": wanted.get("model"),
        "num_prompts": len(load),
        "request_rate": wanted.get("request_rate"),
        "burstiness": wanted.get("burstiness"),
        "max_concurrency": wanted.get("max_concurrency"),
        "seed": wanted.get("seed"),
        "duration": run.duration_s,
        "completed": figures["completed"],
        "failed": figures["failed"],
        "cancelled": figures["cancelled"],
        "total_input_tokens": figures["input_tokens"],
        "total_output_tokens": figures["output_tokens"],
    }
    result |= {key: figures[key] for key in _COPIED if key in figures}
    result |= _flat_latencies(figures)
    result |= {
        "classes": {"all": figures} | _figures_of_parts(run, requests, terms),
        "errors": errors_of(load),
        "health": "PASSED" if health.passed else "FAILED",
        "interrupted": run.interrupted,
        "cut_short": run.cut_short,
        "simulated": run.simulated,
    }
    return {key: value for key, value in result.items() if value is not None}


def _flat_latencies(figures: Mapping[str, Any]) -> dict[str, float]:
    """`p99_ttft_ms` and its like."""
    flat = {}
    for metric in LATENCIES:
        unit = "" if metric == "normalized_ttft" else "_ms"
        for key, value in figures.get(metric, {}).items():
            if key != "count":
                flat[f"{key}_{metric}{unit}"] = value
    return flat


def _figures_of_parts(
    run: RunRecord, requests: list[RequestMetrics], terms: Terms
) -> dict[str, dict[str, Any]]:
    """The figures of every class, then of cold and of warm prompts."""
    goodput = bool(terms.objectives)
    classes = {
        kind: summarise(
            load_of(requests, kind),
            run.duration_s,
            terms.percentiles,
            goodput=goodput and kind != PROBE,
        )
        for kind in classes_of(requests)
    }
    warmths = {
        warmth: summarise(part, run.duration_s, terms.percentiles, goodput=goodput)
        for warmth, part in by_warmth(requests).items()
    }
    return classes | warmths


def summary_stats(run: RunRecord, requests: list[RequestMetrics]) -> dict[str, Any]:
    """veeksha's summary."""
    load = load_of(requests)
    completed = sum(request.record.completed for request in load)
    cancelled = sum(request.record.cancelled for request in load)
    sent = [
        request.record.sent_at for request in load if request.record.sent_at is not None
    ]
    stats: dict[str, Any] = {
        "Number of Requests": len(load),
        "Number of Completed Requests": completed,
        "Number of Errored Requests": len(load) - completed - cancelled,
        "Number of Cancelled Requests": cancelled,
        "Duration": run.duration_s,
    }
    if load:
        stats["Error Rate"] = stats["Number of Errored Requests"] / len(load)
        stats["Cancellation Rate"] = cancelled / len(load)
    if len(sent) > 1 and max(sent) > min(sent):
        stats["Observed Request Dispatch Rate"] = (len(sent) - 1) / (
            max(sent) - min(sent)
        )
    return stats


def throughput_metrics(
    requests: list[RequestMetrics], result: Mapping[str, Any]
) -> dict[str, float]:
    """Etalon's throughputs of one stream (tokens/s), and those of the whole server."""
    load = load_of(requests)
    speeds = {}
    tpot = values_of(load, "tpot")
    gaps = values_of(load, "itl")
    if len(tpot) and tpot.mean() > 0:
        speeds["tpot_based_throughput"] = 1 / float(tpot.mean())
    if len(gaps) and percentile(gaps, 99) > 0:
        speeds["tbc_based_throughput"] = 1 / percentile(gaps, 99)
    keys = (
        "request_throughput",
        "request_goodput",
        "output_throughput",
        "total_token_throughput",
    )
    return speeds | {key: result[key] for key in keys if key in result}


def slo_results(requests: list[RequestMetrics], terms: Terms) -> dict[str, Any]:
    """Every objective of every class: is it met by the required share of the requests?"""
    results = []
    for kind in classes_of(load_of(requests)):
        settled = [
            request
            for request in load_of(requests, kind)
            if not request.record.cancelled
        ]
        bounds = {
            **terms.objectives.default,
            **(terms.objectives.long if kind == "long" else {}),
        }
        for metric, bound in bounds.items():
            name = VEEKSHA[metric][0]
            values = values_of(settled, metric)
            observed = None
            if len(values):
                observed = percentile(values, 100 * terms.attainment)
            share = _share_met(settled, metric, terms.objectives)
            row = {
                "met": share is not None and share >= terms.attainment,
                "slo_metric_key": f"{name}_p{100 * terms.attainment:g}",
                "observed_value": observed,
                "threshold": bound.seconds,
                "times_isolated": bound.times_isolated,
                "percentile": terms.attainment,
                "metric": name,
                "class": kind,
                "share_met": share,
                "name": f"P{100 * terms.attainment:g} {name.upper()} of {kind} requests",
                "lower_is_better": True,
            }
            results.append(
                {key: value for key, value in row.items() if value is not None}
            )
    return {
        "all_slos_met": bool(results) and all(row["met"] for row in results),
        "results": results,
    }


def _share_met(
    settled: Sequence[RequestMetrics], metric: str, objectives: Objectives
) -> float | None:
    """Share of the requests that met one objective; failed ones did not."""
    if not settled:
        return None
    met = 0
    for request in settled:
        value = getattr(request, metric)
        limit = objectives.limits(request.record).get(metric)
        met += request.record.completed and (
            value is None or limit is None or value <= limit
        )
    return met / len(settled)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(
        json.dumps(content, indent=None if "trace" in path.name else 2) + "\n"
    )


def _write_lines(path: Path, rows: Any) -> None:
    with path.open("wb") as file:
        for row in rows:
            file.write(msgspec.json.encode(row) + b"\n")
