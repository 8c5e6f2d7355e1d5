"""Real OTLP receivers in this process: oteltap for HTTP (a package with a native core), grpcio's
server for gRPC."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent import futures

import grpc
from opentelemetry.proto.collector.trace.v1 import (
    trace_service_pb2,
    trace_service_pb2_grpc,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from oteltap import OtelTapHttpProtobufReceiver, OtelTapHttpProtobufReceiverSettings


class Received:
    """Spans as they arrive, and a way to wait for some."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._changed = threading.Condition()

    def add(self, *spans: Span) -> None:
        with self._changed:
            self.spans += spans
            self._changed.notify_all()

    def trace(self, trace_id: str) -> list[Span]:
        return [span for span in self.spans if span.trace_id.hex() == trace_id]

    def wait(
        self,
        trace_id: str,
        complete: Callable[[list[Span]], bool],
        timeout_s: float = 30,
    ) -> list[Span]:
        """All spans of a trace, once they are `complete`."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not complete(self.trace(trace_id)):
                left = deadline - time.monotonic()
                assert left > 0, (
                    f"of trace {trace_id} arrived: {[span.name for span in self.trace(trace_id)]}"
                )
                self._changed.wait(left)
            return self.trace(trace_id)


class HttpReceiver(Received):
    """OTLP over HTTP, in a thread with an event loop of its own."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.endpoint = f"http://127.0.0.1:{port}"
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._serve(port),), daemon=True
        )
        self._thread.start()
        assert self._up.wait(10)

    async def _serve(self, port: int) -> None:
        async with OtelTapHttpProtobufReceiver(
            OtelTapHttpProtobufReceiverSettings(http_port=port)
        ) as receiver:
            reader = asyncio.create_task(self._read(receiver))
            self._up.set()
            await self._stop.wait()
            reader.cancel()

    async def _read(self, receiver: OtelTapHttpProtobufReceiver) -> None:
        async for span in receiver.stream_traces():
            self.add(span)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()


class GrpcReceiver(Received, trace_service_pb2_grpc.TraceServiceServicer):
    """OTLP over gRPC."""

    def __init__(self) -> None:
        super().__init__()
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = (
            f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        )
        self._server.start()

    def Export(self, request, context):
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.add(*scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()

    def close(self) -> None:
        self._server.stop(0).wait()


def facts(span: Span) -> dict:
    """A span's attributes as a plain dict."""
    values = {}
    for attribute in span.attributes:
        kind = attribute.value.WhichOneof("value")
        value = getattr(attribute.value, kind) if kind else None
        values[attribute.key] = (
            [v.string_value for v in value.values] if kind == "array_value" else value
        )
    return values


def children(spans: list[Span], parent: Span) -> list[Span]:
    """In order of their start."""
    return sorted(
        (s for s in spans if s.parent_span_id == parent.span_id),
        key=lambda s: s.start_time_unix_nano,
    )
