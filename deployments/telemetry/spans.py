"""Timelines as OpenTelemetry spans: one tree for each HTTP request, made when it has ended.

    POST /v1/... (server)
      tokenize, admission, queue
      prefill
        prefill.chunk[i] or prefill.chunk[i..j]   overlapping where several are in flight (SPP)
          stage[s] or stage[s].shard[k]           the actors at work; exchange_s: KVP
        preempted | evicted | pipeline_lost       linked to the request that took the turn
      decode                                      events: first_token, stall

Several choices in one HTTP request have a `choice[i]` span each. Nothing is sampled here.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any

import msgspec
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)

from deployments.telemetry.perfetto import chunk_facts, chunk_name
from medha_actors.telemetry.timelines import Chunk, Gap, Timeline
from medha_actors.telemetry.traceparent import parse

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SCOPE = InstrumentationScope("medha")
_random = random.Random()


class Edges(msgspec.Struct, kw_only=True):
    """What the ingress knows of an HTTP request; instants in epoch seconds."""

    trace_id: int
    span_id: int
    parent_span_id: int | None
    sampled: bool
    method: str
    route: str
    replica: str
    arrived_at: float
    body_at: float | None = None  # the body was read
    admitted_at: float | None = None  # it was checked and tokenised
    ended_at: float = 0.0
    status: int | None = None  # None: the client left before there was one
    model: str = ""
    prompt_tokens: int = 0
    request_ids: list[str] = []
    key: str | None = None  # the name of the API key, and whose it is
    tenant: str | None = None


class _Tree:
    """Makes the spans of one trace."""

    def __init__(self, trace_id: int, resource: Resource) -> None:
        self._trace_id = trace_id
        self._resource = resource
        self.spans: list[ReadableSpan] = []

    def context(self, span_id: int) -> SpanContext:
        return SpanContext(
            self._trace_id, span_id, is_remote=False, trace_flags=_SAMPLED
        )

    def add(
        self,
        name: str,
        start: float,
        end: float,
        parent: SpanContext | None,
        facts: dict[str, Any],
        span_id: int = 0,
        kind: SpanKind = SpanKind.INTERNAL,
        events: Sequence[Event] = (),
        links: Sequence[Link] = (),
        failed: str | None = None,
    ) -> SpanContext:
        """A finished span; an end before its start (clocks of several hosts) becomes its start."""
        context = self.context(span_id or _random.getrandbits(64) or 1)
        self.spans.append(
            ReadableSpan(
                name=name,
                context=context,
                parent=parent,
                resource=self._resource,
                attributes={
                    key: value for key, value in facts.items() if value is not None
                },
                events=events,
                links=links,
                kind=kind,
                status=Status() if failed is None else Status(StatusCode.ERROR, failed),
                start_time=_ns(start),
                end_time=_ns(max(start, end)),
                instrumentation_scope=_SCOPE,
            )
        )
        return context


def build(
    edges: Edges, timelines: Sequence[Timeline], resource: Resource
) -> list[ReadableSpan]:
    """The whole tree, root first."""
    tree = _Tree(edges.trace_id, resource)
    parent = None
    if edges.parent_span_id is not None:
        parent = SpanContext(
            edges.trace_id, edges.parent_span_id, is_remote=True, trace_flags=_SAMPLED
        )
    failed = next(
        (t.message or t.reason for t in timelines if t.reason in ("error", "timeout")),
        None,
    )
    if edges.status is not None and edges.status >= 500:
        failed = failed or f"HTTP {edges.status}"
    root = tree.add(
        f"{edges.method} {edges.route}",
        edges.arrived_at,
        edges.ended_at,
        parent,
        _root_facts(edges, timelines),
        span_id=edges.span_id,
        kind=SpanKind.SERVER,
        failed=failed,
    )
    if edges.body_at is not None:
        end = edges.admitted_at or edges.ended_at
        tree.add(
            "tokenize",
            edges.body_at,
            end,
            root,
            {"medha.prompt_tokens": edges.prompt_tokens},
        )
    for index, timeline in enumerate(timelines):
        above = root
        if len(timelines) > 1:
            end = timeline.finished_at or edges.ended_at
            above = tree.add(
                f"choice[{index}]",
                timeline.queued_at,
                end,
                root,
                _choice_facts(timeline),
            )
        _engine(tree, timeline, edges, above)
    return tree.spans


def _root_facts(edges: Edges, timelines: Sequence[Timeline]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "http.request.method": edges.method,
        "http.route": edges.route,
        "http.response.status_code": edges.status,
        "gen_ai.operation.name": "chat" if "chat" in edges.route else "text_completion",
        "gen_ai.request.model": edges.model,
        "gen_ai.usage.input_tokens": edges.prompt_tokens,
        "medha.replica": edges.replica,
        "medha.api_key": edges.key,
        "medha.tenant": edges.tenant,
    }
    if not timelines:
        return facts
    missed = sorted(
        set(itertools.chain.from_iterable([each.missed() for each in timelines]))
    )
    facts["gen_ai.usage.output_tokens"] = sum(timeline.tokens for timeline in timelines)
    facts["gen_ai.response.finish_reasons"] = [
        timeline.reason or "unfinished" for timeline in timelines
    ]
    if missed or all(timeline.reason in ("stop", "length") for timeline in timelines):
        facts["slo_met"] = not missed
    facts["medha.objectives_missed"] = missed
    if len(timelines) == 1:
        return facts | _choice_facts(timelines[0])
    # Each choice has its own figures; what was promised to all of them belongs here as well.
    for name in ("ttft_objective_s", "tpot_objective_s"):
        if len(promised := {getattr(timeline, name) for timeline in timelines}) == 1:
            facts[f"medha.{name}"] = promised.pop()
    return facts


def _choice_facts(timeline: Timeline) -> dict[str, Any]:
    return {
        "medha.request_id": timeline.id,
        "medha.ttft_objective_s": timeline.ttft_objective_s,
        "medha.ttft_s": timeline.ttft_s,
        "medha.predicted_ttft_s": timeline.predicted_ttft_s,
        "medha.tpot_objective_s": timeline.tpot_objective_s,
        "medha.tpot_s": timeline.tpot_s,
        "medha.priority": timeline.priority,
        "medha.preemptions": timeline.preemptions,
        "medha.evictions": timeline.evictions,
        "medha.recomputed_tokens": timeline.recomputed_tokens,
        "medha.cached_tokens": timeline.cached_tokens,
    }


def _engine(tree: _Tree, timeline: Timeline, edges: Edges, above: SpanContext) -> None:
    """Everything between the scheduler's queue and the last token."""
    end = timeline.finished_at or edges.ended_at
    chunks = timeline.chunks
    first_sent = chunks[0].sent_at if chunks else end
    if edges.admitted_at is not None:
        tree.add("admission", edges.admitted_at, timeline.queued_at, above, {})
    tree.add(
        "queue", timeline.queued_at, first_sent, above, {"medha.reason": "arrival"}
    )
    if not chunks:
        return
    prefilled = max(
        timeline.prefilled_at or end,
        *[chunk.done_at or chunk.sent_at for chunk in chunks],
    )
    facts: dict[str, Any] = {
        "tokens": timeline.prompt_tokens,
        "chunks": timeline.chunks_total,
        "preemptions": timeline.preemptions,
    }
    prefill = tree.add("prefill", first_sent, prefilled, above, facts)
    for chunk in chunks:
        _chunk(tree, chunk, prefill)
    for gap in timeline.gaps:
        _gap(tree, gap, end, prefill)
    if timeline.first_token_at is None:
        return
    events = [
        Event(
            "first_token",
            {"ttft_s": timeline.ttft_s or 0.0},
            _ns(timeline.first_token_at),
        )
    ]
    for stall in timeline.stalls:
        events.append(
            Event("stall", {"token": stall.index, "gap_s": stall.gap_s}, _ns(stall.at))
        )
    facts = {
        "tokens": timeline.tokens,
        "largest_gap_s": timeline.largest_gap_s,
        "stalls": timeline.stalls_total,
    }
    tree.add("decode", timeline.first_token_at, end, above, facts, events=events)


def _chunk(tree: _Tree, chunk: Chunk, prefill: SpanContext) -> None:
    end = chunk.done_at or chunk.sent_at
    span = tree.add(chunk_name(chunk), chunk.sent_at, end, prefill, chunk_facts(chunk))
    shards = len({work.group for work in chunk.work}) > 1
    for work in chunk.work:
        name = (
            f"stage[{work.stage}].shard[{work.group}]"
            if shards
            else f"stage[{work.stage}]"
        )
        facts = {"stage": work.stage, "kv_group": work.group, "busy_s": work.busy_s}
        if shards:
            facts["exchange_s"] = work.exchange_s
        tree.add(name, work.started_at, work.ended_at, span, facts)


def _gap(tree: _Tree, gap: Gap, end: float, prefill: SpanContext) -> None:
    taker = parse(gap.by_traceparent)
    links = []
    if taker is not None:
        context = SpanContext(
            taker.trace_id, taker.span_id, is_remote=True, trace_flags=_SAMPLED
        )
        links.append(Link(context, {"medha.relation": "took the turn"}))
    facts = {
        "by": gap.by,
        "gaps": gap.count,
        "waited_s": gap.gap_s or (gap.until_at or end) - gap.from_at,
    }
    tree.add(gap.kind, gap.from_at, gap.until_at or end, prefill, facts, links=links)


def _ns(instant: float) -> int:
    return int(instant * 1e9)
