"""The ingress side: what is recorded of an HTTP request, and what of it is sent."""

import threading
import time

import pytest
from observed import SPAN, exporting
from opentelemetry.sdk.resources import Resource
from stories import TRACE

from deployments.telemetry.spans import build
from medha_actors.config import ApiKeysConfig
from medha_actors.messages import Rejected
from medha_actors.telemetry.traceparent import TraceParent


async def test_the_trace_context_goes_in_and_comes_out(make):
    world = make()
    answer = await world.complete({"traceparent": f"00-{TRACE}-{SPAN}-01"})
    assert answer.headers["x-medha-trace-id"] == TRACE
    version, trace, span, flags = answer.headers["traceresponse"].split("-")
    assert (version, trace, flags) == ("00", TRACE, "01")
    assert world.engine.requests[0].traceparent == f"00-{TRACE}-{span}-01", (
        "the engine's work is below our span"
    )
    assert span != SPAN
    fresh = await world.complete()
    assert fresh.headers["x-medha-trace-id"] not in (TRACE, "0" * 32)


@pytest.mark.parametrize(
    ("serve", "caller", "trace"),
    [
        (TraceParent(7, 1, True), None, 7),  # Serve traces, the caller does not
        (
            TraceParent(9, 1, True),
            TraceParent(9, 2, True),
            9,
        ),  # the caller, then Serve's proxy, then us
        (
            TraceParent(7, 1, True),
            TraceParent(9, 2, True),
            9,
        ),  # a proxy that does not trace: Serve knows no caller
        (None, TraceParent(9, 2, True), 9),
    ],
)
async def test_a_caller_who_traces_is_never_lost(
    make, monkeypatch, serve, caller, trace
):
    world = make()
    monkeypatch.setattr(world.observatory.tracing, "serve_span", lambda: serve)
    answer = await world.complete({"traceparent": str(caller)} if caller else None)
    assert int(answer.headers["x-medha-trace-id"], 16) == trace
    assert world.observatory.tracing.parent(caller) == (
        serve if serve and serve.trace_id == trace else caller
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_the_edges_of_a_request(make, monkeypatch, stream):
    world = make(tracing=exporting(monkeypatch))
    answer = await world.complete(
        {"traceparent": f"00-{TRACE}-{SPAN}-01"}, stream=stream
    )
    assert answer.status_code == 200
    ((edges, timelines),) = await world.traced()
    assert (f"{edges.trace_id:032x}", f"{edges.parent_span_id:016x}") == (TRACE, SPAN)
    assert edges.arrived_at <= edges.body_at <= edges.admitted_at <= edges.ended_at
    assert (edges.status, edges.model, edges.prompt_tokens, edges.route) == (
        200,
        "toy",
        3,
        "/v1/completions",
    )
    assert [timeline.id for timeline in timelines] == edges.request_ids
    assert timelines[0].tokens == 3


async def test_every_choice_is_in_the_trace(make, monkeypatch):
    world = make(tracing=exporting(monkeypatch))
    await world.complete(n=3)
    ((_, timelines),) = await world.traced()
    assert len(timelines) == 3


async def test_refusals_and_errors_are_traced_too(make, monkeypatch):
    world = make(
        lambda request: Rejected(status=429, kind="overloaded_error", message="full"),
        exporting(monkeypatch),
    )
    assert (await world.complete()).status_code == 429
    assert (await world.complete(max_tokens=-1)).status_code == 400
    offered = await world.traced(2)
    assert sorted(edges.status for edges, _ in offered) == [400, 429]


async def test_a_trace_tells_whose_request_it_was_and_no_key(
    make, monkeypatch, tmp_path
):
    secret = "sk-ann-0123456789"
    (tmp_path / "keys").write_text(f"ann research {secret}")
    keys = ApiKeysConfig(file=str(tmp_path / "keys"))
    world = make(tracing=exporting(monkeypatch), api_keys=keys)
    assert (await world.complete()).status_code == 401
    assert (
        await world.complete({"authorization": f"Bearer {secret}"})
    ).status_code == 200
    ((edges, timelines),) = await world.traced()
    assert (edges.key, edges.tenant) == ("ann", "research")
    facts = [
        dict(span.attributes) for span in build(edges, timelines, Resource.create({}))
    ]
    assert facts[0]["medha.tenant"] == "research"
    assert secret not in f"{facts} {edges} {timelines}"


async def test_without_sampling_only_missed_requests_are_sent(make, monkeypatch):
    world = make(tracing=exporting(monkeypatch, sample_ratio=0.0))
    # the script's first token comes after 1.0 s: the objective of 1.0 s is just met
    await world.complete()
    recorder = world.controller.observer.recorder
    (met,) = recorder.finished.values()
    assert not met.missed()
    await world.complete()
    late = list(recorder.finished.values())[1]
    late.deadline_at = late.arrived_at
    ((edges, timelines),) = await world.traced()
    assert [timeline.id for timeline in timelines] == [late.id]
    assert not edges.sampled


async def test_an_unsampled_callers_request_is_not_sent_when_misses_are_not_asked_for(
    make, monkeypatch
):
    world = make(tracing=exporting(monkeypatch, always_missed=False))
    await world.complete({"traceparent": f"00-{TRACE}-{SPAN}-00"})
    await world.complete()
    ((edges, _),) = await world.traced()
    assert f"{edges.trace_id:032x}" != TRACE


async def test_a_lost_engine_leaves_the_servers_own_span(make, monkeypatch):
    world = make(tracing=exporting(monkeypatch))
    await world.complete()
    world.down = True
    ((edges, timelines),) = await world.traced()
    assert edges.status == 200
    assert timelines == []


async def test_what_is_left_is_sent_at_the_end(make, monkeypatch):
    world = make(tracing=exporting(monkeypatch))
    await world.complete()
    app = world.server.asgi()
    async with app.router.lifespan_context(app):
        assert world.export.offered == []
    assert len(world.export.offered) == 1
    assert world.export.closed


async def test_a_backend_that_does_not_answer_delays_the_end_little(make, monkeypatch):
    world = make(tracing=exporting(monkeypatch))
    stuck = threading.Event()
    monkeypatch.setattr("deployments.tracing.CLOSE_S", 0.1)
    world.export.close = lambda: stuck.wait(30)
    began = time.perf_counter()
    await world.observatory.close()
    assert time.perf_counter() - began < 5
    stuck.set()
