"""Several models behind one address, each with a scripted engine."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deployments.catalogue import catalogue_of, grids_name
from deployments.launcher import drain_timeout_s
from deployments.models import Models
from deployments.observatory import Observatory
from deployments.server import Server
from deployments.text import Text
from medha_actors.config import (
    ApiKeysConfig,
    LimitsConfig,
    MedhaConfig,
    ModelLoadingConfig,
    TelemetryConfig,
)
from medha_actors.errors import ConfigError, UnavailableError
from tests.fakes import FakeEngine, saying
from tests.serve.conftest import listening
from tests.serve.test_launcher import config_of

KEY = "sk-ann-0123456789"
OFF = TelemetryConfig(enabled=False)
ALONE = {"model_loading_config": {"model_source": "random", "model_id": "a"}}


class Nobody:
    """Reports of an engine that is away."""

    def __getattr__(self, name: str) -> Any:
        raise UnavailableError("there is no controller")


def server_of(
    name: str, text: Text, said: bytes, observed: bool = False, **more: Any
) -> Server:
    loading = ModelLoadingConfig(
        model_id=name, model_source="random", max_model_len_tokens=4096
    )
    config = MedhaConfig(model_loading_config=loading, **more)
    observatory = (
        Observatory(config, Nobody(), f"replica-of-{name}") if observed else None
    )
    return Server(config, FakeEngine(saying(said)), text, observatory=observatory)


@pytest.fixture
async def begin(toy: Text):
    """`await begin({name: options of server_of})`: a client of all of them."""
    async with AsyncExitStack() as stack:

        async def started(
            models: dict[str, dict[str, Any]],
        ) -> tuple[httpx.AsyncClient, Models]:
            servers = {}
            for name, options in models.items():
                servers[name] = server_of(name, toy, f"I am {name}".encode(), **options)
            app = Models(servers)
            url = await stack.enter_async_context(listening(app))
            client = httpx.AsyncClient(base_url=url, timeout=20.0)
            return await stack.enter_async_context(client), app

        yield started


def body(model: str | None, **more: Any) -> dict[str, Any]:
    asked = {"prompt": "hi", "max_tokens": 16, **more}
    return asked if model is None else {**asked, "model": model}


async def test_the_body_says_which_model_answers(begin):
    http, _ = await begin({"small": {}, "org/large": {}})
    for name in ("small", "org/large"):
        answer = await http.post("/v1/completions", json=body(name))
        assert answer.json()["choices"][0]["text"] == f"I am {name}"
        assert answer.json()["model"] == name
    chat = {"model": "org/large", "messages": [{"role": "user", "content": "who?"}]}
    answer = await http.post("/v1/chat/completions", json=chat)
    assert answer.json()["choices"][0]["message"]["content"] == "I am org/large"
    counted = await http.post("/tokenize", json={"model": "small", "prompt": "four"})
    assert counted.json()["count"] == 4


async def test_streams_pass_as_they_are(begin):
    http, _ = await begin({"small": {}, "large": {}})
    client = openai.AsyncOpenAI(
        base_url=f"{http.base_url}/v1", api_key="none", max_retries=0
    )
    async with client:
        stream = await client.completions.create(
            model="large", prompt="hi", max_tokens=16, stream=True
        )
        text = "".join(
            [chunk.choices[0].text async for chunk in stream if chunk.choices]
        )
    assert text == "I am large"


async def test_who_asks_for_no_model_or_an_unknown_one_is_told_which_there_are(begin):
    http, _ = await begin({"small": {}, "large": {}})
    nobody = await http.post("/v1/completions", json=body(None))
    assert nobody.status_code == 400
    assert nobody.json()["error"]["code"] == "model_missing"
    unknown = await http.post("/v1/completions", json=body("huge"))
    assert unknown.status_code == 404
    error = unknown.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'small', 'large'" in error["message"]
    assert unknown.headers["x-request-id"]
    in_their_words = await http.post(
        "/v1/messages", json={"model": "huge", "max_tokens": 4}
    )
    assert in_their_words.json()["error"]["type"] == "not_found_error"


@pytest.mark.parametrize("wrong", [b"", b"{", b"[1]", b'{"model": 5}', b"[" * 100_000])
async def test_what_is_no_body_gets_the_error_that_one_model_has(begin, wrong):
    http, _ = await begin({"small": {}, "large": {}})
    alone, _ = await begin({"small": {}})
    said = await http.post("/v1/completions", content=wrong)
    assert said.status_code == 400
    assert said.json() == (await alone.post("/v1/completions", content=wrong)).json()


async def test_each_model_keeps_its_bounds_and_the_widest_hold_before_it_is_known(
    begin,
):
    narrow = {"limits": LimitsConfig(max_body_bytes=1000)}
    wide = {"limits": LimitsConfig(max_body_bytes=5000)}
    http, _ = await begin({"narrow": narrow, "wide": wide})

    async def status(model: str, length: int) -> int:
        answer = await http.post(
            "/v1/completions", json=body(model, prompt="x" * length)
        )
        return answer.status_code

    assert await status("wide", 2000) == 200
    assert await status("narrow", 2000) == 413
    assert await status("wide", 6000) == 413
    assert await status("unknown", 6000) == 413


async def test_models_are_listed_together(begin):
    http, _ = await begin({"small": {}, "org/large": {}})
    listed = (await http.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["small", "org/large"]
    assert (listed["first_id"], listed["last_id"]) == ("small", "org/large")
    one = await http.get("/v1/models/org/large")
    assert one.json()["id"] == "org/large"
    assert (await http.get("/v1/models/huge")).status_code == 404


async def test_health_is_that_of_whoever_serves_and_load_the_sum(begin):
    http, app = await begin({"small": {}, "large": {}})
    servers = [model.server for model in app.models.values()]
    servers[0].engine.is_ready = False
    assert (await http.get("/health")).json() == {"status": "ok"}
    servers[1].engine.is_ready = False
    assert (await http.get("/health")).status_code == 503
    servers[0].open_requests = 3
    servers[1].open_requests = 4
    assert (await http.get("/load")).json() == {"server_load": 7}


async def test_every_family_of_figures_stands_once_with_the_series_of_all_models(begin):
    http, _ = await begin({"small": {"observed": True}, "large": {"observed": True}})
    for name in ("small", "large", "large"):
        await http.post("/v1/completions", json=body(name))
    page = (await http.get("/metrics")).text
    names = [line.split()[2] for line in page.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    counts = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == "medha_http_requests_total":
                counts[sample.labels["model_name"]] = sample.value
    assert counts == {"small": 1.0, "large": 2.0}


async def test_a_key_opens_the_models_that_know_it(begin, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"ann {KEY}\n")
    http, _ = await begin(
        {"open": {}, "closed": {"api_keys": ApiKeysConfig(file=str(keys))}}
    )
    listed = (await http.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["open"]
    assert (await http.post("/v1/completions", json=body("closed"))).status_code == 401
    shown = {"authorization": f"Bearer {KEY}"}
    assert (
        await http.post("/v1/completions", json=body("closed"), headers=shown)
    ).is_success
    listed = (await http.get("/v1/models", headers=shown)).json()
    assert [model["id"] for model in listed["data"]] == ["open", "closed"]


async def test_what_is_asked_of_one_model_is_asked_of_the_first_or_by_name(begin):
    http, _ = await begin({"small": {"observed": True}, "large": {"telemetry": OFF}})
    assert (await http.get("/version")).is_success
    assert (await http.get("/openapi.json")).json()["paths"]
    assert (await http.get("/medha")).is_success
    assert (
        await http.get("/medha", params={"model": "large"})
    ).status_code == 404  # has no page
    assert (await http.get("/medha", params={"model": "huge"})).json()["error"][
        "param"
    ] == "model"
    assert (await http.get("/tokenizer_info", params={"model": "large"})).is_success
    assert (await http.get("/v1/completions")).status_code == 405
    assert (await http.get("/nowhere")).status_code == 404


async def test_all_live_and_end_with_the_application(toy):
    ended = []
    servers = {}
    for name in ("small", "large"):
        servers[name] = server_of(name, toy, b"", observed=True)
        servers[name].observatory.tracing.close = closing(ended, name)
    app = Models(servers)
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message["type"])

    await app({"type": "lifespan", "app": app, "state": {}}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert sorted(ended) == ["large", "small"]


def closing(ended: list[str], name: str) -> Any:
    async def close() -> None:
        ended.append(name)

    return close


def test_a_catalogue_of_one_model_is_its_configuration():
    catalogue = catalogue_of({**ALONE, "deployment_config": {"num_replicas": 2}})
    assert not catalogue.several
    assert catalogue.deployment_config == {"num_replicas": 2}
    assert catalogue.entries[0].config.fleet.num_grids is None


def test_each_of_several_models_has_grids():
    second = {"model_loading_config": {"model_source": "random", "model_id": "org/b:1"}}
    models = [{**ALONE, "drain_timeout_s": 5.0}, {**second, "fleet": {"num_grids": 3}}]
    catalogue = catalogue_of(
        {"models": models, "deployment_config": {"num_replicas": 2}}
    )
    assert catalogue.several
    assert [entry.config.fleet.num_grids for entry in catalogue.entries] == [1, 3]
    assert [grids_name(entry) for entry in catalogue.entries] == [
        "grids-a",
        "grids-org-b-1",
    ]
    assert catalogue.drain_timeout_s == 30.0
    assert "fleet" not in models[0]  # what was given stays as it was


@pytest.mark.parametrize(
    ("args", "told"),
    [
        ({"models": []}, "models"),
        ({"models": [ALONE], "scheduler": {}}, "scheduler"),
        (
            {"models": [ALONE, {"limits": {"max_body_bytes": -1}}]},
            r"models\[1\]: limits",
        ),
        ({"models": [ALONE, ALONE]}, "too alike"),
        ({"models": [{**ALONE, "deployment_config": {"a": 1}}]}, "beside `models`"),
        ({"models": [{**ALONE, "fleet": 3}]}, r"models\[0\].*fleet"),
    ],
)
def test_a_wrong_catalogue_is_told(args, told):
    with pytest.raises(ConfigError, match=told):
        catalogue_of(args)


def test_the_launcher_knows_catalogues(tmp_path):
    slow = {**ALONE, "drain_timeout_s": 77.0}
    path = config_of(tmp_path, {"models": [slow]})
    assert drain_timeout_s(path) == 77.0
