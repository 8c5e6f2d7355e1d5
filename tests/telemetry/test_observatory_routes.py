"""The routes that show what is recorded: metrics, timelines and the live page."""

import asyncio
import contextlib

import httpx
import msgspec
from local import LocalController
from observed import MODEL, SPAN, asking, exporting
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from stories import TRACE

from deployments.fleet.reports import FleetReports
from deployments.live_page import LivePage
from deployments.server import Server
from deployments.text_sources import toy_text
from medha_actors.config import MedhaConfig, TelemetryConfig
from tests.fakes import FakeEngine, saying


async def test_metrics_over_http(make):
    world = make()
    await world.complete()
    await world.complete(max_tokens=-1)
    answer = await world.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {
        family.name: family for family in text_string_to_metric_families(answer.text)
    }
    counted = {
        s.labels["status"]: s.value for s in families["medha_http_requests"].samples
    }
    assert counted == {"200": 1, "400": 1}
    assert families["medha_engine_up"].samples[0].value == 1
    world.down = True
    answer = await world.http.get("/metrics")
    families = {
        family.name: family for family in text_string_to_metric_families(answer.text)
    }
    assert answer.status_code == 200
    assert families["medha_engine_up"].samples[0].value == 0
    assert "medha_http_requests" in families


async def test_timelines_can_be_had_without_a_backend(make):
    world = make()
    answer = await world.complete({"x-request-id": "mine"})
    for name in (answer.headers["x-medha-trace-id"], "mine", answer.json()["id"]):
        trace = (await world.http.get(f"/medha/trace/{name}")).json()
        assert any(event["name"] == "decode" for event in trace["traceEvents"])
        facts = (await world.http.get(f"/medha/trace/{name}?format=timeline")).json()[
            "timelines"
        ]
        assert facts[0]["trace_id"] == answer.headers["x-medha-trace-id"]
        assert facts[0]["missed"] == []
    recent = await world.http.get("/medha/timelines?last=5")
    assert "attachment" in recent.headers["content-disposition"]
    assert (await world.http.get("/medha/timelines?last=many")).status_code == 400
    assert (await world.http.get("/medha/trace/unknown")).status_code == 404
    world.down = True
    assert (await world.http.get("/medha/timelines")).status_code == 503


async def test_where_the_backend_is_looked_at(make, monkeypatch):
    world = make(
        tracing=exporting(monkeypatch, ui_url="http://jaeger/trace/{trace_id}")
    )
    await world.complete({"traceparent": f"00-{TRACE}-{SPAN}-01"})
    facts = (await world.http.get(f"/medha/trace/{TRACE}?format=timeline")).json()[
        "timelines"
    ]
    assert facts[0]["ui_url"] == f"http://jaeger/trace/{TRACE}"


async def test_switched_off_nothing_is_left(make):
    config = MedhaConfig(
        model_loading_config=MODEL, telemetry=TelemetryConfig(enabled=False)
    )
    server = Server(config, FakeEngine(saying(b"x")), toy_text(512, 4096))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(server.asgi()), base_url="http://medha"
    ) as http:
        assert (await http.get("/metrics")).status_code == 404
        assert (await http.get("/medha")).status_code == 404


async def test_the_live_page_is_served_and_can_be_switched_off(make):
    assert "EventSource" in (await make().http.get("/medha")).text
    assert (await make(live_page=False).http.get("/medha")).status_code == 404


def looking(query: bytes = b"") -> Request:
    return Request({"type": "http", "query_string": query})


async def test_of_a_fleet_the_asked_grid_is_drawn_and_all_have_a_row():
    controllers = {"b": LocalController(stages=2), "a": LocalController(stages=2)}
    for name, controller in controllers.items():
        controller.add(f"in-{name}", 3000)
        controller.run(2)
    page = LivePage(
        TelemetryConfig(live_period_s=0.05), FleetReports(lambda: controllers)
    )
    viewers = {}
    for asked in ("", "b", "gone"):
        answer = await page.feed(looking(f"grid={asked}".encode()))
        viewers[asked] = answer.body_iterator
    drawn = {}
    for asked, frames in viewers.items():
        await anext(frames)
        first = msgspec.json.decode((await anext(frames)).removeprefix(b"data: "))
        assert [row["name"] for row in first["grids"]] == ["a", "b"]
        assert [row["prefilling"] for row in first["grids"]] == [1, 1]
        assert first["steps"], "all steps of the grid that is drawn"
        assert first["queue"][0]["request_id"] == f"in-{first['grid']}"
        drawn[asked] = first["grid"]
    assert drawn == {"": "a", "b": "b", "gone": "a"}
    del controllers["a"]
    while True:
        later = msgspec.json.decode((await anext(viewers[""])).removeprefix(b"data: "))
        if later["grid"] == "b":
            break
        assert later["steps"] == []
    assert later["steps"], "those of the other one, from the first on"
    for frames in viewers.values():
        await frames.aclose()
    for task in asking():
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_the_feed_runs_only_while_somebody_looks(make):
    world = make(live_period_s=0.05)
    world.controller.add("a", 3000)
    world.controller.run(2)
    page = world.observatory.live
    answers = [await page.feed(looking()) for _ in range(2)]
    viewers = [answer.body_iterator for answer in answers]
    for frames in viewers:
        assert (await anext(frames)).startswith(b": ")
    snapshots = [
        msgspec.json.decode((await anext(frames)).removeprefix(b"data: "))
        for frames in viewers
    ]
    assert snapshots[0] == snapshots[1], "one question for all viewers"
    assert snapshots[0]["queue"][0]["request_id"] == "a"
    assert snapshots[0]["steps"]
    later = msgspec.json.decode((await anext(viewers[0])).removeprefix(b"data: "))
    assert later["steps"] == [], "nothing has happened since"
    world.down = True
    while "error" not in msgspec.json.decode(
        (await anext(viewers[0])).removeprefix(b"data: ")
    ):
        pass
    await viewers[0].aclose()
    [task] = asking()
    await viewers[1].aclose()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert asking() == []
