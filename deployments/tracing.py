"""Tracing in an ingress replica: which ended requests become spans. Decided at the end, so that
misses are never lost.

The engine's part of a trace comes from the controller, a second after the request has ended and for
many requests at once; a request waits for none of this.

Ray Serve's own spans (`tracing_config` in serve_config.yaml) join the same trace when it is given
`exporter_import_path: deployments.tracing:serve_span_processors`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from typing import Any

from deployments.telemetry.http_record import HttpRecord
from medha_actors.config import TelemetryConfig, TracingConfig
from medha_actors.errors import MedhaError
from medha_actors.telemetry.reports import Asked, Reports
from medha_actors.telemetry.timelines import Timeline
from medha_actors.telemetry.traceparent import TraceParent

_DELAY_S = 1.0
CLOSE_S = 2.0


class Tracing:
    """Off (`exporter: none`): `ended` does nothing, and OpenTelemetry is not imported."""

    def __init__(self, config: TelemetryConfig, reports: Reports, replica: str) -> None:
        self._config = config.tracing
        self._reports = reports
        self._replica = replica
        # So many ended requests are not left waiting: the ring is bounded.
        self._at_once = max(1, config.timelines // 4)
        self._ended: list[HttpRecord] = []
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.export: Any = None
        if config.tracing.exporter != "none":
            from deployments.telemetry.export import SpanExport

            self.export = SpanExport(config.tracing)

    def parent(self, header: TraceParent | None) -> TraceParent | None:
        """What our span is a child of: Ray Serve's span around this request, else the caller's.

        A proxy that does not trace hands the caller's context on to nobody but us: Serve's replica
        then begins a trace of its own, which is moved below the caller's span.
        """
        serve = self.serve_span()
        if serve is None or header is None or serve.trace_id == header.trace_id:
            return serve or header
        if serve_spans is None:  # they go elsewhere, out of our reach
            return header
        serve_spans.move(serve.trace_id, header)
        return header._replace(span_id=serve.span_id) if header.sampled else header

    def serve_span(self) -> TraceParent | None:
        """Ray Serve's span around this request, if its tracing is on."""
        serve = sys.modules.get("ray.serve._private.tracing_utils")
        if serve is None or not serve.is_tracing_enabled():
            return None
        from opentelemetry import trace

        context = trace.get_current_span(serve.get_trace_context()).get_span_context()
        return (
            TraceParent(context.trace_id, context.span_id, context.trace_flags.sampled)
            if context.is_valid
            else None
        )

    def ended(self, record: HttpRecord) -> None:
        """Note a request that has ended; its trace follows later, if it is wanted."""
        if self.export is None or not (
            record.span.sampled or self._config.always_missed
        ):
            return
        self._ended.append(record)
        if len(self._ended) >= self._at_once:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_DELAY_S, self.flush)

    def spans(self) -> tuple[int, int]:
        """Spans sent and lost so far."""
        counts: tuple[int, int] = (
            self.export.spans() if self.export is not None else (0, 0)
        )
        return counts

    async def close(self) -> None:
        """Send what is left, at the end of a replica; no longer than a few seconds, whatever the
        backend does."""
        if self.export is not None:
            self.flush()
            await asyncio.wait(self._tasks, timeout=CLOSE_S)
        if self.export is not None or serve_spans is not None:
            closing = threading.Thread(target=self._send_rest, daemon=True)
            closing.start()
            await asyncio.to_thread(closing.join, CLOSE_S)

    def _send_rest(self) -> None:
        if self.export is not None:
            self.export.close()
        if serve_spans is not None:
            serve_spans.force_flush()

    def flush(self) -> None:
        """Trace what has ended so far."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        records = self._ended
        self._ended = []
        task = asyncio.ensure_future(self._trace(records))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _trace(self, records: list[HttpRecord]) -> None:
        always: list[str] = []
        if_missed: list[str] = []
        for record in records:
            asked_for = always if record.span.sampled else if_missed
            asked_for += record.request_ids
        found: dict[str, Timeline] = {}
        try:
            if always or if_missed:
                timelines = await self._reports.take_timelines(Asked(always, if_missed))
                found = {timeline.id: timeline for timeline in timelines}
        except MedhaError:
            found = {}  # the engine is away: the server's own spans are better than none
        for record in records:
            timelines = [found[i] for i in record.request_ids if i in found]
            if record.span.sampled or timelines:
                self.export.offer(self._edges(record), timelines)

    def _edges(self, record: HttpRecord) -> Any:
        from deployments.telemetry.spans import Edges

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
            request_ids=record.request_ids,
            key=record.key.name if record.key else None,
            tenant=record.key.tenant if record.key else None,
        )


# the processor of Serve's spans in this process, if they are sent by ours
serve_spans: Any = None


def serve_span_processors() -> list[Any]:
    """For Ray Serve's `tracing_config.exporter_import_path`: its spans to
    $OTEL_EXPORTER_OTLP_ENDPOINT (HTTP)."""
    global serve_spans
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from deployments.telemetry.export import Backend, exporter_of
    from deployments.telemetry.moving import Moving

    # Serve names none: backends would show "unknown_service"
    os.environ.setdefault("OTEL_SERVICE_NAME", "ray-serve")
    config = TracingConfig(exporter="otlp_http")
    serve_spans = Moving(
        BatchSpanProcessor(
            Backend(exporter_of(config), config), schedule_delay_millis=1000
        )
    )
    return [serve_spans]
