"""Timelines as a trace file for https://ui.perfetto.dev (or chrome://tracing), without any tracing
backend.

Process 1 has a track for each request (queue, chunks, gaps, decode), process 2 one for each stage
actor. Format: Chrome's Trace Event JSON; times in microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from medha_actors.telemetry.reports import StepReport
from medha_actors.telemetry.timelines import Chunk, Timeline

Event = dict[str, Any]
_REQUESTS = 1
_STAGES = 2


def trace_of(
    timelines: Sequence[Timeline], steps: Sequence[StepReport] = ()
) -> dict[str, Any]:
    """The file's content."""
    events: list[Event] = [
        _name("process_name", _REQUESTS, 0, "requests"),
        _name("process_name", _STAGES, 0, "stages"),
    ]
    for track, timeline in enumerate(
        sorted(timelines, key=lambda t: t.arrived_at), start=1
    ):
        events.append(
            _name(
                "thread_name",
                _REQUESTS,
                track,
                f"{timeline.id} ({timeline.prompt_tokens} tokens)",
            )
        )
        events += _request(timeline, track)
    groups = 1 + max([step.group for step in steps], default=0)
    stages = max([len(step.starts) for step in steps], default=0)
    for stage in range(stages):
        for group in range(groups):
            events.append(
                _name(
                    "thread_name",
                    _STAGES,
                    1 + stage * groups + group,
                    f"stage {stage}, KV group {group}",
                )
            )
    for step in steps:
        events += _step(step, groups)
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _request(timeline: Timeline, track: int) -> list[Event]:
    now = max(
        [
            timeline.arrived_at,
            *[chunk.done_at or chunk.sent_at for chunk in timeline.chunks],
        ]
    )
    end = timeline.finished_at or timeline.last_token_at or now
    first_chunk = timeline.chunks[0].sent_at if timeline.chunks else end
    events = [
        _slice("request", track, timeline.arrived_at, end, _request_facts(timeline)),
        _slice("ingress", track, timeline.arrived_at, timeline.queued_at, {}),
        _slice("queue", track, timeline.queued_at, first_chunk, {}),
    ]
    events += _chunks(timeline, track)
    for gap in timeline.gaps:
        events.append(
            _slice(
                gap.kind,
                track,
                gap.from_at,
                gap.until_at or end,
                {"by": gap.by, "count": gap.count},
            )
        )
    if timeline.first_token_at is not None:
        facts = {
            "tokens": timeline.tokens,
            "largest_gap_s": timeline.largest_gap_s,
            "stalls": timeline.stalls_total,
        }
        events.append(_slice("decode", track, timeline.first_token_at, end, facts))
        events.append(_instant("first token", track, timeline.first_token_at, {}))
    events.append(_instant("deadline", track, timeline.deadline_at, {}))
    return events + [
        _instant("stall", track, stall.at, {"token": stall.index, "gap_s": stall.gap_s})
        for stall in timeline.stalls
    ]


def _request_facts(timeline: Timeline) -> dict[str, Any]:
    return {
        "trace": timeline.traceparent,
        "ttft_objective_s": timeline.ttft_objective_s,
        "tpot_objective_s": timeline.tpot_objective_s,
        "predicted_ttft_s": timeline.predicted_ttft_s,
        "ttft_s": timeline.ttft_s,
        "tpot_s": timeline.tpot_s,
        "preemptions": timeline.preemptions,
        "recomputed_tokens": timeline.recomputed_tokens,
        "cached_tokens": timeline.cached_tokens,
        "missed": list(timeline.missed()),
        "finish_reason": timeline.reason,
    }


def _chunks(timeline: Timeline, track: int) -> list[Event]:
    """Chunks overlap (SPP); a track cannot show that, so each reaches to the start of the next one
    at most."""
    events = []
    for chunk, following in zip_longest(timeline.chunks, timeline.chunks[1:]):
        until = chunk.done_at or chunk.sent_at
        if following is not None:
            until = min(until, following.sent_at)
        events.append(
            _slice(chunk_name(chunk), track, chunk.sent_at, until, chunk_facts(chunk))
        )
    return events


def chunk_name(chunk: Chunk) -> str:
    """`prefill.chunk[3]`, or `prefill.chunk[3..17]` for a run."""
    last = chunk.index + chunk.count - 1
    return (
        f"prefill.chunk[{chunk.index}]"
        if last == chunk.index
        else f"prefill.chunk[{chunk.index}..{last}]"
    )


def chunk_facts(chunk: Chunk) -> dict[str, Any]:
    """Attributes of a chunk, under the names that spans use as well."""
    facts: dict[str, Any] = {
        "start": chunk.start,
        "tokens": chunk.tokens,
        "kv_tokens": chunk.kv_tokens,
        "predicted_s": chunk.predicted_s,
        "slack_before_s": chunk.slack_before_s,
        "relative_slack_before": chunk.relative_slack,
        "batch_id": chunk.batch_id,
        "budget_s": chunk.budget_s,
        "batched_with": chunk.beside,
    }
    if chunk.actual_s is not None:
        facts["actual_s"] = chunk.actual_s
    if chunk.count > 1:
        facts["chunks"] = chunk.count
    return facts


def _step(step: StepReport, groups: int) -> list[Event]:
    if step.prefills:
        name = " + ".join(
            f"{request_id}[{start}:{start + tokens}]"
            for request_id, start, tokens in step.prefills
        )
    else:
        name = f"decode x {step.decodes}"
    facts = {
        "batch_id": step.batch_id,
        "decodes": step.decodes,
        "predicted_s": step.predicted_s,
    }
    return [
        {
            **_slice(
                name,
                1 + stage * groups + step.group,
                start,
                start + seconds,
                {**facts, "exchange_s": exchange},
            ),
            "pid": _STAGES,
        }
        for stage, (start, seconds, exchange) in enumerate(
            zip(step.starts, step.seconds, step.exchange, strict=True)
        )
    ]


def _name(kind: str, process: int, track: int, name: str) -> Event:
    return {
        "ph": "M",
        "name": kind,
        "pid": process,
        "tid": track,
        "args": {"name": name},
    }


def _slice(
    name: str, track: int, start: float, end: float, facts: dict[str, Any]
) -> Event:
    length = max(0.0, end - start) * 1e6
    return {
        "ph": "X",
        "name": name,
        "pid": _REQUESTS,
        "tid": track,
        "ts": start * 1e6,
        "dur": length,
        "args": facts,
    }


def _instant(name: str, track: int, at: float, facts: dict[str, Any]) -> Event:
    return {
        "ph": "i",
        "s": "t",
        "name": name,
        "pid": _REQUESTS,
        "tid": track,
        "ts": at * 1e6,
        "args": facts,
    }
