"""Spans that were begun in a trace of their own, sent as a part of another: Ray Serve's, below the
caller's.

`serve run` starts Serve's proxy before it reads `tracing_config`. Then the proxy does not trace,
and the replica, which learns of the caller's `traceparent` from the proxy alone, begins a new
trace. The ingress reads the header itself, and Serve's span ends after that: it is sent as if Serve
had known the caller.
"""

from __future__ import annotations

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import SpanContext, TraceFlags

from medha_actors.telemetry.traceparent import TraceParent


class Moving(SpanProcessor):
    """Hands spans on to `then`; those of traces to be moved with another trace and parent."""

    def __init__(self, then: SpanProcessor) -> None:
        self._then = then
        self.callers: dict[int, TraceParent] = {}

    def move(self, trace_id: int, caller: TraceParent) -> None:
        """Until its first span ends, `trace_id` is a part of the caller's trace; not sent if that
        is not sampled."""
        self.callers[trace_id] = caller

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        self._then.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        trace_id = span.context.trace_id if span.context is not None else 0
        caller = self.callers.get(trace_id)
        if caller is None:
            self._then.on_end(span)
            return
        if span.parent is None:  # the first to begin is the last to end
            del self.callers[trace_id]
        if caller.sampled:
            self._then.on_end(_moved(span, caller))

    def shutdown(self) -> None:
        self._then.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._then.force_flush(timeout_millis)


def _moved(span: ReadableSpan, caller: TraceParent) -> ReadableSpan:
    def there(span_id: int, remote: bool) -> SpanContext:
        return SpanContext(
            caller.trace_id,
            span_id,
            is_remote=remote,
            trace_flags=TraceFlags(TraceFlags.SAMPLED),
        )

    above = span.parent
    return ReadableSpan(
        name=span.name,
        context=there(span.context.span_id if span.context is not None else 0, False),
        parent=there(caller.span_id, True)
        if above is None
        else there(above.span_id, above.is_remote),
        resource=span.resource,
        attributes=span.attributes,
        events=span.events,
        links=span.links,
        kind=span.kind,
        status=span.status,
        start_time=span.start_time,
        end_time=span.end_time,
        instrumentation_scope=span.instrumentation_scope,
    )
