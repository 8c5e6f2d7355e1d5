"""The ingress side: what is recorded of an HTTP request, what is sent, and the routes that show
it."""

import asyncio
import contextlib
import threading
import time

import httpx
import msgspec
import pytest
from local import LocalController
from opentelemetry.sdk.resources import Resource
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from stories import TRACE, accepted

from deployments import live
from deployments.observatory import Observatory
from deployments.server import Server
from deployments.telemetry.spans import build
from deployments.text_sources import toy_text
from medha_actors.config import (
    ApiKeysConfig,
    MedhaConfig,
    ModelLoadingConfig,
    TelemetryConfig,
    TracingConfig,
)
from medha_actors.errors import UnavailableError
from medha_actors.messages import FinishedEvent, Rejected, TokenEvent
from medha_actors.telemetry.traceparent import TraceParent
from tests.fakes import FakeEngine, saying

MODEL = ModelLoadingConfig(model_id="toy", model_source="random", max_model_len_tokens=4096)
SPAN = "b7ad6b7169203331"


class Export:
    """Takes what the exporter's thread would get."""

    def __init__(self) -> None:
        self.offered: list = []
        self.closed = False
        self.changed = asyncio.Event()

    def offer(self, edges, timelines) -> None:
        self.offered.append((edges, timelines))
        self.changed.set()

    def spans(self) -> tuple[int, int]:
        return 7, 1

    def close(self) -> None:
        self.closed = True


class Reachable:
    """The world's controller, while it is up (medha_actors.telemetry.reports.Reports)."""

    def __init__(self, world):
        self._world = world

    def __getattr__(self, method):
        if self._world.down:
            raise UnavailableError("the engine is being rebuilt", retry_after_s=5)
        return getattr(self._world.controller, method)


class World:
    """A real server with a scripted engine, whose requests a local controller's recorder is told
    of."""

    def __init__(
        self,
        answer=None,
        tracing: TracingConfig | None = None,
        api_keys: ApiKeysConfig | None = None,
        **telemetry,
    ) -> None:
        self.controller = LocalController()
        script = saying(b"hello")

        async def told(request):
            recorder = self.controller.observer.recorder
            recorder.accepted(request, accepted(request, tpot_s=2.0), request.arrived_at)
            async for event in script(request):
                if isinstance(event, TokenEvent | FinishedEvent):
                    recorder.happened(event)
                yield event

        self.engine = FakeEngine(told, answer)
        self.down = False
        section = TelemetryConfig(tracing=tracing or TracingConfig(), **telemetry)
        config = MedhaConfig(
            model_loading_config=MODEL, telemetry=section, api_keys=api_keys or ApiKeysConfig()
        )
        self.observatory = Observatory(config, Reachable(self), "r1")
        self.export = Export()
        if tracing is not None:
            self.observatory.tracing.export = self.export
        self.server = Server(config, self.engine, toy_text(512, 4096), observatory=self.observatory)
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.server.asgi()), base_url="http://medha"
        )

    async def complete(self, headers=None, **body) -> httpx.Response:
        fields = {"model": "toy", "prompt": [65, 66, 67], "max_tokens": 3, "temperature": 0, **body}
        return await self.http.post("/v1/completions", json=fields, headers=headers)

    async def traced(self, count: int = 1) -> list:
        """What was sent, once it is; the delay is cut short."""
        self.observatory.tracing.flush()
        while len(self.export.offered) < count:
            self.export.changed.clear()
            await self.export.changed.wait()
        return self.export.offered


@pytest.fixture
async def make():
    async with contextlib.AsyncExitStack() as stack:

        def build(*args, **options) -> World:
            world = World(*args, **options)
            stack.push_async_callback(world.http.aclose)
            return world

        yield build


def exporting(monkeypatch, **options) -> TracingConfig:
    monkeypatch.setattr("deployments.telemetry.export.SpanExport", lambda config: None)
    return TracingConfig(exporter="otlp_http", **options)


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
async def test_a_caller_who_traces_is_never_lost(make, monkeypatch, serve, caller, trace):
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
    answer = await world.complete({"traceparent": f"00-{TRACE}-{SPAN}-01"}, stream=stream)
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


async def test_a_trace_tells_whose_request_it_was_and_no_key(make, monkeypatch, tmp_path):
    secret = "sk-ann-0123456789"
    (tmp_path / "keys").write_text(f"ann research {secret}")
    keys = ApiKeysConfig(file=str(tmp_path / "keys"))
    world = make(tracing=exporting(monkeypatch), api_keys=keys)
    assert (await world.complete()).status_code == 401
    assert (await world.complete({"authorization": f"Bearer {secret}"})).status_code == 200
    ((edges, timelines),) = await world.traced()
    assert (edges.key, edges.tenant) == ("ann", "research")
    facts = [dict(span.attributes) for span in build(edges, timelines, Resource.create({}))]
    assert facts[0]["medha.tenant"] == "research"
    assert secret not in f"{facts} {edges} {timelines}"


async def test_without_sampling_only_missed_requests_are_sent(make, monkeypatch):
    world = make(tracing=exporting(monkeypatch, sample_ratio=0.0))
    await (
        world.complete()
    )  # the script's first token comes after 1.0 s: the objective of 1.0 s is just met
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
    world, stuck = make(tracing=exporting(monkeypatch)), threading.Event()
    monkeypatch.setattr("deployments.tracing.CLOSE_S", 0.1)
    world.export.close = lambda: stuck.wait(30)
    began = time.perf_counter()
    await world.observatory.close()
    assert time.perf_counter() - began < 5
    stuck.set()


async def test_metrics_over_http(make):
    world = make()
    await world.complete()
    await world.complete(max_tokens=-1)
    answer = await world.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    counted = {s.labels["status"]: s.value for s in families["medha_http_requests"].samples}
    assert counted == {"200": 1, "400": 1}
    assert families["medha_engine_up"].samples[0].value == 1
    world.down = True
    answer = await world.http.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert answer.status_code == 200
    assert families["medha_engine_up"].samples[0].value == 0
    assert "medha_http_requests" in families


async def test_timelines_can_be_had_without_a_backend(make):
    world = make()
    answer = await world.complete({"x-request-id": "mine"})
    for name in (answer.headers["x-medha-trace-id"], "mine", answer.json()["id"]):
        trace = (await world.http.get(f"/medha/trace/{name}")).json()
        assert any(event["name"] == "decode" for event in trace["traceEvents"])
        facts = (await world.http.get(f"/medha/trace/{name}?format=timeline")).json()["timelines"]
        assert facts[0]["trace_id"] == answer.headers["x-medha-trace-id"]
        assert facts[0]["missed"] == []
    recent = await world.http.get("/medha/timelines?last=5")
    assert "attachment" in recent.headers["content-disposition"]
    assert (await world.http.get("/medha/timelines?last=many")).status_code == 400
    assert (await world.http.get("/medha/trace/unknown")).status_code == 404
    world.down = True
    assert (await world.http.get("/medha/timelines")).status_code == 503


async def test_where_the_backend_is_looked_at(make, monkeypatch):
    world = make(tracing=exporting(monkeypatch, ui_url="http://jaeger/trace/{trace_id}"))
    await world.complete({"traceparent": f"00-{TRACE}-{SPAN}-01"})
    facts = (await world.http.get(f"/medha/trace/{TRACE}?format=timeline")).json()["timelines"]
    assert facts[0]["ui_url"] == f"http://jaeger/trace/{TRACE}"


async def test_switched_off_nothing_is_left(make):
    config = MedhaConfig(model_loading_config=MODEL, telemetry=TelemetryConfig(enabled=False))
    server = Server(config, FakeEngine(saying(b"x")), toy_text(512, 4096))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(server.asgi()), base_url="http://medha"
    ) as http:
        assert (await http.get("/metrics")).status_code == 404
        assert (await http.get("/medha")).status_code == 404


async def test_the_live_page_is_served_and_can_be_switched_off(make):
    assert "EventSource" in (await make().http.get("/medha")).text
    assert (await make(live_page=False).http.get("/medha")).status_code == 404


def asking() -> list[asyncio.Task]:
    """The task that asks the controller for the live page, if somebody looks."""
    return [task for task in asyncio.all_tasks() if task.get_name() == live.TASK]


async def test_the_feed_runs_only_while_somebody_looks(make):
    world = make(live_period_s=0.05)
    world.controller.add("a", 3000)
    world.controller.run(2)
    page = world.observatory.live
    answers = [await page.feed(Request({"type": "http"})) for _ in range(2)]
    viewers = [answer.body_iterator for answer in answers]
    for frames in viewers:
        assert (await anext(frames)).startswith(b": ")
    snapshots = [
        msgspec.json.decode((await anext(frames)).removeprefix(b"data: ")) for frames in viewers
    ]
    assert snapshots[0] == snapshots[1], "one question for all viewers"
    assert snapshots[0]["queue"][0]["request_id"] == "a"
    assert snapshots[0]["steps"]
    later = msgspec.json.decode((await anext(viewers[0])).removeprefix(b"data: "))
    assert later["steps"] == [], "nothing has happened since"
    world.down = True
    while "error" not in msgspec.json.decode((await anext(viewers[0])).removeprefix(b"data: ")):
        pass
    await viewers[0].aclose()
    [task] = asking()
    await viewers[1].aclose()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert asking() == []
