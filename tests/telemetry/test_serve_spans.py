"""Ray Serve's spans and ours: one tree, with and without a caller, though Serve's proxy does not
trace."""

import asyncio
import sys
from pathlib import Path

import aiohttp
import pytest
from observed import World
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import set_span_in_context
from receivers import HttpReceiver, children

from deployments import tracing
from deployments.telemetry.moving import Moving
from medha_actors.telemetry.traceparent import TraceParent, parse

sys.path.append(str(Path(__file__).parent.parent / "system"))
from serve_process import free_port, serving

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TINY = {
    "model_loading_config": {
        "model_source": "random",
        "model_id": "toy",
        "dtype": "float32",
        "max_model_len_tokens": 512,
        "random": {"hidden": 64, "intermediate": 128, "layers": 2},
    },
    "parallel": {"spp": 1},
    "actors": {"num_cpus": 0.5, "spares": 0},
    "kv_cache": {"budget_bytes": 2**22},
    "predictor": {"calibrate": False},
}


@pytest.fixture
def sent() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def moving(sent) -> Moving:
    return Moving(SimpleSpanProcessor(sent))


def ended(moving: Moving, caller: TraceParent | None) -> tuple[int, int]:
    """A span of Serve's with one below it; the trace is the caller's where there is one. The first
    one's ids."""
    provider = TracerProvider()
    provider.add_span_processor(moving)
    tracer = provider.get_tracer("serve")
    outer = tracer.start_span("replica_handle_request", attributes={"app": "medha"})
    inner = tracer.start_span("inner", context=set_span_in_context(outer))
    context = outer.get_span_context()
    if caller is not None:
        moving.move(context.trace_id, caller)
    inner.end()
    outer.end()
    return context.trace_id, context.span_id


def test_serves_spans_are_moved_below_the_callers(moving, sent):
    caller = parse(CALLER)
    _, span_id = ended(moving, caller)
    inner, outer = sent.get_finished_spans()
    assert (outer.context.trace_id, outer.context.span_id) == (caller.trace_id, span_id)
    assert (outer.parent.trace_id, outer.parent.span_id) == (
        caller.trace_id,
        caller.span_id,
    )
    assert (inner.context.trace_id, inner.parent.span_id) == (caller.trace_id, span_id)
    assert outer.attributes["app"] == "medha"
    assert moving.callers == {}


def test_other_spans_stay_where_they_are(moving, sent):
    trace_id, _ = ended(moving, None)
    assert {span.context.trace_id for span in sent.get_finished_spans()} == {trace_id}
    assert sent.get_finished_spans()[1].parent is None


def test_a_caller_who_does_not_sample_gets_none_of_serves_spans(moving, sent):
    ended(moving, parse(CALLER)._replace(sampled=False))
    assert sent.get_finished_spans() == ()
    assert moving.callers == {}


@pytest.mark.parametrize("sampled", [True, False])
async def test_our_span_is_below_serves_which_is_below_the_callers(
    moving, monkeypatch, sampled
):
    world = World()
    caller = parse(CALLER)._replace(sampled=sampled)
    monkeypatch.setattr(
        world.observatory.tracing, "serve_span", lambda: TraceParent(7, 1, True)
    )
    monkeypatch.setattr(tracing, "serve_spans", moving)
    parent = world.observatory.tracing.parent(caller)
    assert parent == (TraceParent(caller.trace_id, 1, True) if sampled else caller)
    assert moving.callers == {7: caller}
    await world.http.aclose()


@pytest.mark.slow  # a server of its own
def test_with_tracing_config_there_is_one_tree(tmp_path, monkeypatch):
    receiver = HttpReceiver(free_port())
    # both Serve's and ours go there
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    path = "deployments.tracing:serve_span_processors"
    serve = {"enabled": True, "exporter_import_path": path, "sampling_ratio": 1.0}
    telemetry = {"tracing": {"exporter": "otlp_http"}}

    async def request(url: str, headers: dict[str, str]) -> str:
        body = {"model": "toy", "prompt": [65] * 20, "max_tokens": 2}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/v1/completions", json=body, headers=headers) as answer,
        ):
            assert answer.status == 200
            await answer.read()
            return answer.headers["x-medha-trace-id"]

    try:
        with serving(tmp_path, tracing_config=serve, **TINY, telemetry=telemetry) as (
            url,
            _,
        ):
            traces = [
                asyncio.run(request(url, headers))
                for headers in ({}, {"traceparent": CALLER})
            ]
        # The server has ended: what it had not sent before, it has sent then.
        for trace, above in zip(traces, ("", "b7ad6b7169203331"), strict=True):
            spans = receiver.wait(
                trace,
                lambda spans: (
                    {"decode", "replica"} <= {s.name.split("_")[0] for s in spans}
                ),
            )
            (top,) = [
                span
                for span in spans
                if span.parent_span_id not in {s.span_id for s in spans}
            ]
            assert (top.name.split()[0], top.parent_span_id.hex()) == (
                "replica_handle_request",
                above,
            )
            assert [span.name for span in children(spans, top)] == [
                "POST /v1/completions"
            ]
        assert traces[1] == CALLER.split("-")[1]
    finally:
        receiver.close()
