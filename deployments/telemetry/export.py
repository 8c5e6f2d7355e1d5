"""SpanExport: a thread that turns ended requests into spans and hands them to OpenTelemetry's batch
processor.

Nothing here can delay a request: `offer` never blocks, both queues are bounded, and what does not
fit is dropped (whole traces) and counted. A backend that is down, slow or wrong shows as one log
line when it begins and one when it is over.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import queue
import threading
from collections.abc import Sequence
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SpanExporter,
    SpanExportResult,
)

from deployments.telemetry.spans import Edges, build
from medha_actors.config import TracingConfig
from medha_actors.errors import ConfigError
from medha_actors.telemetry.timelines import Timeline

_log = logging.getLogger("medha.tracing")
_REQUESTS_QUEUED = 1024
_BATCH_SPANS = 512
_DELAY_MS = 1000
_ENDPOINTS = {"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"}
_MODULES = {
    "otlp_grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "otlp_http": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
}


class SpanExport:
    """One per ingress replica. Raises ConfigError if the exporter's package is not installed."""

    def __init__(
        self, config: TracingConfig, exporter: SpanExporter | None = None
    ) -> None:
        """`exporter`: instead of the configured one."""
        self.backend = Backend(exporter or exporter_of(config), config)
        self._lost_requests = 0
        self._resource = Resource.create({"service.name": config.service_name})
        self._processor = BatchSpanProcessor(
            self.backend,
            max_queue_size=config.queue_spans,
            schedule_delay_millis=_DELAY_MS,
            max_export_batch_size=_BATCH_SPANS,
        )
        self._waiting: queue.Queue[tuple[Edges, list[Timeline]] | None] = queue.Queue(
            _REQUESTS_QUEUED
        )
        self._thread = threading.Thread(
            target=self._run, name="medha-spans", daemon=True
        )
        self._thread.start()

    def offer(self, edges: Edges, timelines: list[Timeline]) -> None:
        """Send the trace of an ended request, if there is room."""
        try:
            self._waiting.put_nowait((edges, timelines))
        except queue.Full:
            self._lost_requests += 1

    def spans(self) -> tuple[int, int]:
        """Spans sent and lost so far; a request whose spans were not even made counts as one."""
        return self.backend.sent_spans, self.backend.lost_spans + self._lost_requests

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what is left; for the end of a replica and for tests."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=timeout_s)
            self._thread.join(timeout_s)
        self._processor.shutdown()

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            try:
                spans = build(*item, self._resource)
                if self.backend.take(len(spans)):
                    for span in spans:
                        self._processor.on_end(span)
            except Exception:
                _log.exception("a trace could not be made")


class Backend(SpanExporter):
    """The OTLP exporter, with two log lines instead of one for each failure."""

    def __init__(self, exporter: SpanExporter, config: TracingConfig) -> None:
        set_for_all = next(
            (os.environ[name] for name in sorted(_ENDPOINTS) if name in os.environ),
            "localhost",
        )
        self._exporter = exporter
        self._where = f"{config.exporter} to {config.endpoint or set_for_all}"
        self._room = config.queue_spans
        self.reachable = True
        self.sent_spans = 0
        # Each is written by one thread alone: that which makes spans, or that which sends them.
        self.taken_spans = self.dropped_spans = self._done = self._failed = 0
        for noisy in ("opentelemetry.exporter", "opentelemetry.sdk"):
            logging.getLogger(noisy).setLevel(logging.CRITICAL)

    @property
    def lost_spans(self) -> int:
        return self.dropped_spans + self._failed

    def take(self, count: int) -> bool:
        """Whether the queue has room for so many spans more; if not, they are lost."""
        if self.taken_spans - self._done + count > self._room:
            self.dropped_spans += count
            self._lose("the backend is too slow")
            return False
        self.taken_spans += count
        return True

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Called in the batch processor's thread."""
        reason = "the backend refused or did not answer"
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            result = SpanExportResult.FAILURE
            reason = f"{type(error).__name__}: {error}"
        self._done += len(spans)
        if result is not SpanExportResult.SUCCESS:
            self._failed += len(spans)
            self._lose(reason)
            return result
        self.sent_spans += len(spans)
        # one that is too slow is not back yet
        if not self.reachable and self.taken_spans - self._done <= self._room // 2:
            self.reachable = True
            _log.warning(
                "traces arrive again (%s) after %d lost spans",
                self._where,
                self.lost_spans,
            )
        return result

    def _lose(self, reason: str) -> None:
        if self.reachable:
            self.reachable = False
            _log.warning(
                "traces are lost (%s): %s; serving goes on", self._where, reason
            )

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def exporter_of(config: TracingConfig) -> SpanExporter:
    """OTLP over gRPC or HTTP."""
    try:
        module = importlib.import_module(_MODULES[config.exporter])
    except ImportError as error:
        raise ConfigError(
            f"args: telemetry.tracing.exporter is {config.exporter}: {error}"
        ) from None
    options: dict[str, Any] = {
        "timeout": config.timeout_s,
        "headers": config.headers or None,
    }
    endpoint = config.endpoint
    if endpoint is None and not _ENDPOINTS & os.environ.keys():
        endpoint = (
            "http://localhost:4317"
            if config.exporter == "otlp_grpc"
            else "http://localhost:4318"
        )
    if endpoint is not None:
        if config.exporter == "otlp_http":
            endpoint = endpoint.rstrip("/")
            endpoint = (
                endpoint if endpoint.endswith("/v1/traces") else f"{endpoint}/v1/traces"
            )
        else:
            options["insecure"] = not endpoint.startswith("https")
        options["endpoint"] = endpoint
    exporter: SpanExporter = module.OTLPSpanExporter(**options)
    return exporter
