"""Spans: the tree, real receivers over gRPC and HTTP, and backends that are down, slow or wrong."""

import http.server
import logging
import socket
import threading
import time

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from receivers import GrpcReceiver, HttpReceiver, children, facts
from stories import TRACE, Story, convoy

from deployments.telemetry.export import SpanExport
from deployments.telemetry.spans import Edges, build
from medha_actors.config import TracingConfig
from medha_actors.telemetry.timelines import Timeline

PARENT = 0x123456


def edges(timelines: list[Timeline], span_id: int = 77, **more) -> Edges:
    start = min((t.arrived_at for t in timelines), default=1000.0)
    end = max((t.finished_at for t in timelines), default=1001.0)
    fields = {
        "status": 200,
        "body_at": start,
        "admitted_at": start,
        "model": "toy",
        "prompt_tokens": 1000,
        **more,
    }
    return Edges(
        trace_id=int(TRACE, 16),
        span_id=span_id,
        parent_span_id=PARENT,
        sampled=True,
        method="POST",
        route="/v1/completions",
        replica="r",
        arrived_at=start,
        ended_at=end,
        **fields,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def long() -> Timeline:
    return convoy().recorder.finished["long"]


def test_the_tree_of_a_convoy(long):
    spans = build(edges([long]), [long], Resource.create({}))
    by_id = {span.context.span_id: span for span in spans}
    root = spans[0]
    assert root.parent.span_id == PARENT
    assert root.parent.is_remote
    assert all(span.parent.span_id in by_id for span in spans[1:])

    def below(parent):
        return [
            span for span in spans[1:] if span.parent.span_id == parent.context.span_id
        ]

    assert [span.name for span in below(root)] == [
        "tokenize",
        "admission",
        "queue",
        "prefill",
        "decode",
    ]
    prefill, decode = below(root)[3:]
    names = [span.name for span in below(prefill)]
    assert names == [
        "prefill.chunk[0]",
        "prefill.chunk[1]",
        "prefill.chunk[2]",
        "preempted",
    ]
    first, second, third, gap = below(prefill)
    assert first.start_time <= second.start_time < first.end_time, (
        "SPP: two chunks at once"
    )
    assert [span.name for span in below(first)] == ["stage[0]", "stage[1]"]
    shards = [
        "stage[0].shard[0]",
        "stage[1].shard[0]",
        "stage[0].shard[1]",
        "stage[1].shard[1]",
    ]
    assert [span.name for span in below(third)] == shards
    assert below(third)[0].attributes["exchange_s"] == 0.002
    wanted = {
        "start",
        "tokens",
        "kv_tokens",
        "predicted_s",
        "actual_s",
        "slack_before_s",
        "batch_id",
    }
    assert wanted <= set(first.attributes)
    assert [link.context.span_id for link in gap.links] == [5], (
        "the server span of the request that took the turn"
    )
    assert gap.attributes["by"] == "short"
    assert [event.name for event in decode.events] == ["first_token", "stall"]
    assert (root.attributes["slo_met"], root.attributes["medha.objectives_missed"]) == (
        False,
        ["tpot"],
    )
    assert root.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert root.attributes["gen_ai.usage.output_tokens"] == 3


def test_several_choices_have_a_span_each(long):
    spans = build(edges([long, long]), [long, long], Resource.create({}))
    assert [span.name for span in spans if span.name.startswith("choice")] == [
        "choice[0]",
        "choice[1]",
    ]
    assert spans[0].attributes["medha.ttft_objective_s"] == 1.0, (
        "what was promised to both is on the root"
    )
    assert "medha.ttft_s" not in spans[0].attributes
    assert len([span for span in spans if span.name == "decode"]) == 2


def test_a_refused_request_has_a_server_span():
    (root, tokenize) = build(edges([], status=429), [], Resource.create({}))
    assert (root.attributes["http.response.status_code"], tokenize.name) == (
        429,
        "tokenize",
    )
    assert "slo_met" not in root.attributes


def test_a_million_tokens_stay_under_a_bound():
    story = Story(max_chunks=96)
    story.arrives("huge", 1_000_000)
    for _ in range(2000):
        story.step(("huge", 500), groups=(0, 1))
    story.token("huge", 0, 0.01)
    story.ends("huge")
    timeline = story.recorder.finished["huge"]
    spans = build(edges([timeline]), [timeline], Resource.create({}))
    assert len(spans) <= 6 + 96 * (1 + 4)
    assert (
        sum(
            span.attributes["tokens"]
            for span in spans
            if span.name.startswith("prefill.chunk")
        )
        == 1_000_000
    )


@pytest.mark.parametrize("exporter", ["otlp_grpc", "otlp_http"])
def test_a_real_receiver_gets_the_tree(exporter, long):
    receiver = GrpcReceiver() if exporter == "otlp_grpc" else HttpReceiver(free_port())
    export = SpanExport(TracingConfig(exporter=exporter, endpoint=receiver.endpoint))
    try:
        export.offer(edges([long]), [long])
        export.close()
        spans = receiver.wait(
            TRACE, lambda spans: any(span.name == "decode" for span in spans)
        )
    finally:
        receiver.close()
    (root,) = [
        span for span in spans if int.from_bytes(span.parent_span_id, "big") == PARENT
    ]
    assert root.name == "POST /v1/completions"
    assert facts(root)["slo_met"] is False
    assert [span.name for span in children(spans, root)][:3] == [
        "tokenize",
        "admission",
        "queue",
    ]
    assert (
        len(spans)
        == len(build(edges([long]), [long], Resource.create({})))
        == export.backend.sent_spans
    )


def test_a_backend_that_is_down_costs_one_log_line(long, caplog):
    config = TracingConfig(
        exporter="otlp_http", endpoint=f"http://127.0.0.1:{free_port()}", timeout_s=0.2
    )
    export = SpanExport(config)
    with caplog.at_level(logging.WARNING):
        for i in range(1, 80):  # several batches of spans
            export.offer(edges([long], i), [long])
        export.close(timeout_s=30)
    assert export.backend.lost_spans > 512
    assert len(caplog.records) == 1
    assert "traces are lost" in caplog.text
    assert "serving goes on" in caplog.text


class NotOtlp(http.server.BaseHTTPRequestHandler):
    """A web server that knows nothing of traces."""

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_error(404)

    def log_message(self, *_):
        return


@pytest.mark.parametrize(
    ("exporter", "endpoint"),
    [
        ("otlp_http", "http://127.0.0.1:{port}"),
        ("otlp_grpc", "http://127.0.0.1:{port}"),
        ("otlp_http", "https://127.0.0.1:{port}"),
        ("otlp_http", "http://no.such.host.invalid:4318"),
        ("otlp_http", "nonsense"),
        ("otlp_grpc", "nonsense"),
    ],
)
def test_a_backend_that_is_wrong_costs_one_log_line(exporter, endpoint, long, caplog):
    with http.server.HTTPServer(("127.0.0.1", 0), NotOtlp) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = TracingConfig(
            exporter=exporter,
            endpoint=endpoint.format(port=server.server_port),
            timeout_s=0.2,
        )
        export = SpanExport(config)
        with caplog.at_level(logging.WARNING):
            for i in range(1, 40):
                export.offer(edges([long], i), [long])
            export.close(timeout_s=30)
        server.shutdown()
    assert export.spans() == (
        0,
        39 * len(build(edges([long]), [long], Resource.create({}))),
    )
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        "traces are lost"
    ]


class Scripted(SpanExporter):
    """Answers as it is told."""

    def __init__(self) -> None:
        self.answer = lambda: SpanExportResult.SUCCESS
        self.calls = 0

    def export(self, spans):
        self.calls += 1
        return self.answer()


def test_a_backend_that_never_answers_delays_nobody_and_memory_is_bounded(long):
    stuck = threading.Event()
    entered = threading.Event()
    exporter = Scripted()

    def answer():
        entered.set()
        stuck.wait(30)
        return SpanExportResult.FAILURE

    exporter.answer = answer
    export = SpanExport(TracingConfig(exporter="otlp_http", queue_spans=512), exporter)
    began = time.perf_counter()
    for _ in range(3000):
        export.offer(edges([long]), [long])
    per_offer_s = (time.perf_counter() - began) / 3000
    assert entered.wait(10)
    assert per_offer_s < 0.005
    lost = export.spans()[1]
    assert (
        lost >= 3000 - 1024 - 512 - 1
    )  # both queues are full, and one is between them
    stuck.set()
    export.close(timeout_s=30)


class Slow(SpanExporter):
    """Takes a batch whenever it is let."""

    def __init__(self) -> None:
        self.spans: list = []
        self.let = threading.Semaphore(0)

    def export(self, spans):
        self.let.acquire(timeout=30)
        self.spans += spans
        return SpanExportResult.SUCCESS


def test_a_backend_that_is_too_slow_costs_one_log_line_and_whole_traces(long, caplog):
    slow = Slow()
    traces = 300
    each = len(build(edges([long]), [long], Resource.create({})))
    export = SpanExport(TracingConfig(exporter="otlp_http", queue_spans=2048), slow)
    backend = export.backend
    with caplog.at_level(logging.WARNING):
        for i in range(1, traces + 1):
            export.offer(edges([long], i), [long])
            if i % 100 == 0:
                slow.let.release()  # it does take some, but not nearly enough
        while backend.taken_spans + backend.dropped_spans < traces * each:
            time.sleep(0.01)
        assert [record.message.split(" (")[0] for record in caplog.records] == [
            "traces are lost"
        ]
        assert "too slow" in caplog.text
        slow.let.release(100)
        export.close(timeout_s=30)
    assert export.spans() == (len(slow.spans), traces * each - len(slow.spans))
    roots = [span for span in slow.spans if span.name.startswith("POST")]
    assert len(slow.spans) == each * len(roots), "a trace is sent whole or not at all"
    assert "arrive again" in caplog.records[-1].message
    assert len(caplog.records) == 2


def test_a_backend_that_comes_back_says_so(long, caplog):
    exporter = Scripted()
    export = SpanExport(TracingConfig(exporter="otlp_http"), exporter)
    backend = export.backend
    with caplog.at_level(logging.WARNING):
        for answer in (
            SpanExportResult.FAILURE,
            SpanExportResult.FAILURE,
            SpanExportResult.SUCCESS,
        ):
            exporter.answer = lambda answer=answer: answer
            backend.export([])
        exporter.answer = lambda: 1 / 0  # a backend of the wrong kind
        backend.export([])
    lost, again, wrong = [record.message for record in caplog.records]
    assert "traces are lost" in lost
    assert "arrive again" in again
    assert "ZeroDivisionError" in wrong
    export.close()
