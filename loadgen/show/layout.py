"""The formats that a result is written in: veeksha's request rows and CSV, a Chrome trace."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from loadgen.judge.metrics import RequestMetrics, classes_of, load_of, values_of
from loadgen.records import RequestRecord, Turn

# Our name of a metric: veeksha's file name and column title.
VEEKSHA = {
    "ttft": ("ttfc", "Time to First Chunk"),
    "itl": ("tbc", "Time Between Chunks"),
    "tpot": ("tpot", "Time per Output Token"),
    "e2el": ("end_to_end_latency", "End to End Latency"),
    "normalized_ttft": ("normalized_ttft", "Normalised Time to First Token"),
}


def request_row(request: RequestMetrics) -> dict[str, Any]:
    """One line of request_level_metrics.jsonl: veeksha's fields, then ours. Seconds; what is
    undefined is left out."""
    row = _veeksha_fields(request) | _own_fields(request)
    return {key: value for key, value in row.items() if value is not None}


def _veeksha_fields(request: RequestMetrics) -> dict[str, Any]:
    """With what replays a request of ours (turn, blocks) beside its session."""
    record = request.record
    tokens = record.generated_tokens
    prompt = record.usage_prompt_tokens
    if prompt is None:
        prompt = record.prompt_tokens
    per_token = None
    if request.e2el is not None and tokens:
        per_token = request.e2el / tokens
    return {
        "request_id": record.index,
        "session_id": record.turn.session if record.turn else record.index,
        "session_total_requests": record.turn.count if record.turn else 1,
        "turn": record.turn.number if record.turn else None,
        "message_tokens": record.turn.message_tokens if record.turn else None,
        "pause": record.turn.pause_s if record.turn else None,
        "hash_ids": record.blocks or None,
        "block_tokens": record.block_tokens or None,
        "scheduler_ready_at": record.scheduled_at,
        "scheduler_dispatched_at": record.released_at,
        "client_picked_up_at": record.sent_at,
        "client_completed_at": record.ended_at,
        "num_delta_prompt_tokens": prompt,
        "num_total_prompt_tokens": prompt,
        "target_num_delta_prompt_tokens": record.prompt_tokens,
        "num_output_tokens": tokens,
        "num_requested_output_tokens": record.output_tokens,
        "num_total_tokens": prompt + tokens,
        "is_stream": True,
        "ttfc": request.ttft,
        "tpot": request.tpot,
        "end_to_end_latency": request.e2el,
        "normalized_end_to_end_latency": per_token,
        "output_throughput": tokens / request.e2el if request.e2el else None,
        "tbc": list(request.itl) if request.ttft is not None else None,
        "success": record.completed,
    }


def _own_fields(request: RequestMetrics) -> dict[str, Any]:
    record = request.record
    return {
        "class": record.kind,
        "http_request_id": record.id or None,
        "status": record.status,
        "finish_reason": record.finish_reason,
        "error": record.error,
        "cancelled": record.cancelled or None,
        "answered_at": record.answered_at,
        "tokens_reported": record.usage_completion_tokens,
        "cached_tokens": record.cached_tokens,
        "known_tokens": record.known_tokens,
        "isolated_ttft": record.isolated_ttft_s,
        "normalized_ttft": request.normalized_ttft,
        "announced_ttft": record.announced_ttft_s,
        "ttft_deadline": record.deadline_s,
        "lateness": request.lateness,
        "met_objectives": request.good,
        "fluidity_index": request.fluidity,
        "deadlines": request.deadlines,
        "missed_deadlines": request.missed_deadlines,
    }


def request_of_row(row: Mapping[str, Any]) -> RequestMetrics:
    """The inverse, as far as tables and figures need it."""
    sent = row.get("client_picked_up_at")
    ttft = row.get("ttfc")
    gaps = row.get("tbc", [])
    times = array(
        "d",
        accumulate(gaps, initial=sent + ttft)
        if sent is not None and ttft is not None
        else (),
    )
    record = RequestRecord(
        index=row["request_id"],
        kind=row.get("class", "short"),
        prompt_tokens=row["target_num_delta_prompt_tokens"],
        output_tokens=row["num_requested_output_tokens"],
        scheduled_at=row["scheduler_ready_at"],
        released_at=row["scheduler_dispatched_at"],
        sent_at=sent,
        token_times=times,
        ended_at=row.get("client_completed_at"),
        usage_prompt_tokens=row["num_total_prompt_tokens"],
        usage_completion_tokens=row["num_output_tokens"],
        cached_tokens=row.get("cached_tokens"),
        known_tokens=row.get("known_tokens"),
        error=row.get("error"),
        cancelled=row.get("cancelled", False),
        isolated_ttft_s=row.get("isolated_ttft"),
        announced_ttft_s=row.get("announced_ttft"),
        deadline_s=row.get("ttft_deadline"),
        blocks=tuple(row.get("hash_ids", ())),
        block_tokens=row.get("block_tokens", 0),
        turn=_turn_of(row) if "turn" in row else None,
    )
    return RequestMetrics(
        record=record,
        ttft=ttft,
        itl=array("d", gaps),
        tpot=row.get("tpot"),
        e2el=row.get("end_to_end_latency"),
        normalized_ttft=row.get("normalized_ttft"),
        lateness=row.get("lateness"),
        good=row.get("met_objectives"),
        deadlines=row.get("deadlines"),
        missed_deadlines=row.get("missed_deadlines"),
    )


def _turn_of(row: Mapping[str, Any]) -> Turn:
    return Turn(
        session=row["session_id"],
        number=row["turn"],
        count=row["session_total_requests"],
        message_tokens=row["message_tokens"],
        pause_s=row["pause"],
    )


def cdf_csv(requests: Sequence[RequestMetrics], metric: str) -> str | None:
    """101 percentiles of a metric: all of the load, then each class; None if it has no values."""
    load = load_of(requests)
    columns = {VEEKSHA[metric][1]: values_of(load, metric)}
    columns |= {
        kind: values_of(load_of(requests, kind), metric) for kind in classes_of(load)
    }
    columns = {title: values for title, values in columns.items() if len(values)}
    if not columns:
        return None
    shares = np.arange(101)
    table = np.column_stack(
        [np.percentile(values, shares) for values in columns.values()]
    )
    rows = [",".join(("", "cdf", *columns))]
    for share in shares:
        cells = ",".join(f"{value:.9g}" for value in table[share])
        rows.append(f"{share},{share / 100:g},{cells}")
    return "\n".join(rows) + "\n"


def trace_row(record: RequestRecord) -> dict[str, Any]:
    """One line of trace.jsonl: what was sent and when; may be replayed as a Mooncake trace."""
    row = {
        "request_id": record.index,
        "session_id": record.turn.session if record.turn else record.index,
        "session_size": record.turn.count if record.turn else 1,
        "dispatched_at": record.sent_at,
        "timestamp": 1000 * record.scheduled_at,
        "input_length": record.prompt_tokens,
        "output_length": record.output_tokens,
        "class": record.kind,
    }
    return row | (
        {"hash_ids": record.blocks, "block_tokens": record.block_tokens}
        if record.blocks
        else {}
    )


def chrome_trace(requests: Iterable[RequestMetrics]) -> Iterator[dict[str, Any]]:
    """Events for chrome://tracing or Perfetto: per class, a request is a bar until its first token,
    then another."""
    lanes: dict[str, list[float]] = {}
    processes: dict[str, int] = {}
    for request in sorted(requests, key=lambda request: request.record.sent_at or 0.0):
        record = request.record
        if record.sent_at is None or record.ended_at is None:
            continue
        if record.kind not in processes:
            processes[record.kind] = pid = len(processes) + 1
            yield {
                "name": "process_name",
                "ph": "M",
                "pid": pid,
                "args": {"name": f"{record.kind} requests"},
            }
        pid = processes[record.kind]
        lane = _lane(lanes.setdefault(record.kind, []), record.sent_at, record.ended_at)
        first = record.token_times[0] if len(record.token_times) else record.ended_at
        about = {
            "prompt_tokens": record.prompt_tokens,
            "output_tokens": record.generated_tokens,
            "id": record.id,
        }
        about |= {"error": record.error} if record.error else {}
        for name, start, stop in (
            ("until first token", record.sent_at, first),
            ("tokens", first, record.ended_at),
        ):
            if stop > start:
                bar = {
                    "name": name,
                    "ph": "X",
                    "pid": pid,
                    "tid": lane,
                    "cat": record.kind,
                    "args": about,
                }
                yield bar | {
                    "ts": round(1e6 * start, 1),
                    "dur": round(1e6 * (stop - start), 1),
                }


def _lane(busy_until: list[float], start: float, stop: float) -> int:
    """The first row of the picture that is free at `start`."""
    for lane, until in enumerate(busy_until):
        if until <= start:
            busy_until[lane] = stop
            return lane
    busy_until.append(stop)
    return len(busy_until) - 1
