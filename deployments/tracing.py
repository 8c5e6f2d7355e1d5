"""Tracing in an ingress replica: which ended requests become spans. Decided at the end, so that misses are never lost.

The engine's part of a trace comes from the controller, a second after the request has ended and for many requests at
once; a request waits for none of this.

Ray Serve's own spans (`tracing_config` in serve_config.yaml) join the same trace when it is given
`exporter_import_path: deployments.tracing:serve_span_processors`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from medha_actors.actors.telemetry.remote import Asked
from medha_actors.actors.telemetry.timelines import Timeline
from medha_actors.actors.telemetry.traceparent import TraceParent
from medha_actors.config import TelemetryConfig, TracingConfig
from medha_actors.errors import MedhaError

if TYPE_CHECKING:
    from deployments.observatory import Record

_encode = msgspec.msgpack.Encoder().encode
_decode_timelines = msgspec.msgpack.Decoder(list[Timeline]).decode
_DELAY_S = 1.0


class Tracing:
    """Off (`exporter: none`): `ended` does nothing, and OpenTelemetry is not imported."""

    def __init__(self, config: TelemetryConfig, ask: Callable[..., Awaitable[bytes]], replica: str) -> None:
        self._config, self._ask, self._replica = config.tracing, ask, replica
        self._at_once = max(
            1, config.timelines // 4
        )  # so many ended requests are not left waiting: the ring is bounded
        self._ended: list[Record] = []
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.export: Any = None
        if config.tracing.exporter != "none":
            from medha_actors.actors.telemetry.export import SpanExport

            self.export = SpanExport(config.tracing)

    def parent(self, header: TraceParent | None) -> TraceParent | None:
        """What our span is a child of: Ray Serve's span around this request, or the caller's.

        A proxy that does not trace hands the caller's context on to nobody but us: Serve's replica then begins a trace
        of its own, and the caller's is the one to go on with.
        """
        serve = self.serve_span()
        return serve if serve and (header is None or header.trace_id == serve.trace_id) else header

    def serve_span(self) -> TraceParent | None:
        """Ray Serve's span around this request, if its tracing is on."""
        serve = sys.modules.get("ray.serve._private.tracing_utils")
        if serve is None or not serve.is_tracing_enabled():
            return None
        from opentelemetry import trace

        context = trace.get_current_span(serve.get_trace_context()).get_span_context()
        return TraceParent(context.trace_id, context.span_id, context.trace_flags.sampled) if context.is_valid else None

    def ended(self, record: Record) -> None:
        """Note a request that has ended; its trace follows later, if it is wanted."""
        if self.export is None or not (record.span.sampled or self._config.always_missed):
            return
        self._ended.append(record)
        if len(self._ended) >= self._at_once:
            self._flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_DELAY_S, self._flush)

    def spans(self) -> tuple[int, int]:
        """Spans sent and lost so far."""
        return (self.export.backend.sent_spans, self.export.backend.lost_spans) if self.export is not None else (0, 0)

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        records, self._ended = self._ended, []
        task = asyncio.ensure_future(self._trace(records))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _trace(self, records: list[Record]) -> None:
        asked = Asked(
            [i for record in records if record.span.sampled for i in _ids(record)],
            [i for record in records if not record.span.sampled for i in _ids(record)],
        )
        found: dict[str, Timeline] = {}
        try:
            if asked.always or asked.if_missed:
                timelines = _decode_timelines(await self._ask("take_timelines", _encode(asked)))
                found = {timeline.id: timeline for timeline in timelines}
        except MedhaError:
            found = {}  # the engine is away: the server's own spans are better than none
        for record in records:
            timelines = [found[i] for i in _ids(record) if i in found]
            if record.span.sampled or timelines:
                self.export.offer(self._edges(record), timelines)

    def _edges(self, record: Record) -> Any:
        from medha_actors.actors.telemetry.spans import Edges

        job = record.job
        return Edges(
            trace_id=record.span.trace_id,
            span_id=record.span.span_id,
            parent_span_id=record.parent.span_id if record.parent is not None else None,
            sampled=record.span.sampled,
            method=record.method,
            route=record.route,
            replica=self._replica,
            arrived_at=record.arrived_at,
            body_at=record.body_at,
            admitted_at=record.admitted_at,
            ended_at=record.ended_at,
            status=record.status,
            model=job.model if job else "",
            prompt_tokens=job.prompt_tokens if job else 0,
            request_ids=_ids(record),
        )


def _ids(record: Record) -> list[str]:
    return [choice.request.id for choice in record.job.choices] if record.job is not None else []


def serve_span_processors() -> list[Any]:
    """For Ray Serve's `tracing_config.exporter_import_path`: its spans to $OTEL_EXPORTER_OTLP_ENDPOINT (HTTP)."""
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from medha_actors.actors.telemetry.export import Backend, exporter_of

    config = TracingConfig(exporter="otlp_http")
    return [BatchSpanProcessor(Backend(exporter_of(config), config))]
