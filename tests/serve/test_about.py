"""What a server tells of itself, and that /openapi.json is true."""

import asyncio
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from deployments.observatory import Observatory
from deployments.server import Server
from deployments.text import Text
from deployments.text_sources import TOY_TEMPLATE, toy_text
from medha_actors.config import MedhaConfig, TelemetryConfig
from medha_actors.errors import UnavailableError
from tests.fakes import FakeEngine, finished, saying, token
from tests.serve.conftest import MODEL, listening

EOS = 256
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def observed(telemetry: TelemetryConfig, **sections: Any) -> Server:
    """A server with all routes; nobody asks its controller."""

    async def ask(method: str, *arguments: Any) -> bytes:
        raise UnavailableError("there is no controller", retry_after_s=1.0)

    config = MedhaConfig(model_loading_config=MODEL, telemetry=telemetry, **sections)
    text = toy_text(512, 4096)
    observatory = Observatory(config, ask, "r1")
    return Server(config, FakeEngine(saying(b"x")), text, observatory=observatory)


async def test_health_has_a_second_name(start) -> None:
    service = await start()
    for answer in (await service.http.get("/ping"), await service.http.post("/ping")):
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    service.engine.is_ready = False
    assert (await service.http.get("/ping")).status_code == 503


async def test_the_version_is_that_of_the_package(start) -> None:
    service = await start()
    version = (await service.http.get("/version")).json()["version"]
    assert version.split(".")[0].isdigit()
    assert (await service.http.get("/openapi.json")).json()["info"][
        "version"
    ] == version


async def test_the_load_is_what_is_being_answered(start) -> None:
    go_on = asyncio.Event()

    async def script(request):
        yield token(request, 0, 65)
        await go_on.wait()
        yield finished(request, 1)

    service = await start(script)
    assert (await service.http.get("/load")).json() == {"server_load": 0}
    asked = [
        asyncio.ensure_future(service.post("/v1/completions", {"prompt": "x"}))
        for _ in "ab"
    ]
    await service.engine.until(lambda: len(service.engine.requests) == 2)
    assert (await service.http.get("/load")).json() == {"server_load": 2}
    go_on.set()
    await asyncio.gather(*asked)
    assert (await service.http.get("/load")).json() == {"server_load": 0}
    assert (await service.post("/v1/completions", {})).status_code == 400
    assert (await service.http.get("/load")).json() == {"server_load": 0}


async def test_what_a_client_with_a_tokenizer_of_its_own_needs(start) -> None:
    service = await start()
    assert (await service.http.get("/tokenizer_info")).json() == {
        "eos_token": "<eos>",
        "bos_token": None,
        "pad_token": None,
        "unk_token": None,
        "chat_template": TOY_TEMPLATE,
        "model_max_length": 4096,
    }


async def test_special_tokens_are_those_of_the_files(start, toy) -> None:
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<p>",
    }
    text = Text(toy.tokenizer, special_tokens=names, eos_token_ids=(EOS,))
    server = Server(
        MedhaConfig(model_loading_config=MODEL), FakeEngine(saying(b"x")), text
    )
    transport = httpx.ASGITransport(server.asgi())
    async with httpx.AsyncClient(transport=transport, base_url="http://medha") as http:
        info = (await http.get("/tokenizer_info")).json()
    assert info == {**names, "chat_template": None, "model_max_length": 4096}


@pytest.mark.parametrize(
    ("page", "place"), [(True, "/medha"), (False, "/openapi.json")]
)
@pytest.mark.parametrize("root", ["", "/prefix"])
async def test_the_address_alone_leads_somewhere(
    page: bool, place: str, root: str
) -> None:
    app = observed(TelemetryConfig(live_page=page)).asgi()
    transport = httpx.ASGITransport(app, root_path=root)
    async with httpx.AsyncClient(transport=transport, base_url="http://medha") as http:
        answer = await http.get(f"{root}/")
        assert (answer.status_code, answer.headers["location"]) == (307, root + place)
        assert (await http.get(root + place)).status_code == 200


async def test_the_icon(start) -> None:
    service = await start()
    icon = await service.http.get("/favicon.ico")
    assert icon.headers["content-type"].startswith("image/svg+xml")
    assert icon.text.startswith("<svg")


async def test_unknown_routes_and_wrong_methods_stay_error_objects(start) -> None:
    service = await start()
    for method, path, status in (
        ("GET", "/v2/models", 404),
        ("GET", "/medha", 404),  # without telemetry there is none
        ("POST", "/version", 405),
        ("DELETE", "/", 405),
        ("GET", "/tokenize", 405),
    ):
        answer = await service.http.request(method, path)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert ("allow" in answer.headers) == (status == 405)


def references(value: Any) -> set[str]:
    """Every $ref in a document."""
    if isinstance(value, list):
        return set().union(*map(references, value))
    if not isinstance(value, dict):
        return set()
    own = {value["$ref"]} if "$ref" in value else set()
    return own.union(*map(references, value.values()))


@pytest.mark.parametrize(
    "telemetry", [TelemetryConfig(), TelemetryConfig(live_page=False)]
)
async def test_the_description_has_every_route_and_no_other(telemetry) -> None:
    app = observed(telemetry).asgi()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://medha") as http:
        document = (await http.get("/openapi.json")).json()
    described = set()
    for path, row in document["paths"].items():
        described |= {(path, method.upper()) for method in row}
    served = set()
    for route in app.routes:
        served |= {(route.path_format, method) for method in route.methods - {"HEAD"}}
    assert described == served
    assert document["openapi"] == "3.1.0"
    schemas = document["components"]["schemas"]
    assert references(document) <= {f"#/components/schemas/{name}" for name in schemas}
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    names = []
    for path in document["paths"].values():
        names += [row["operationId"] for row in path.values()]
    assert len(set(names)) == len(names)


def validator(document: Any, schema: Any) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": document["components"]})


async def test_answers_are_as_described(start) -> None:
    service = await start()
    document = (await service.http.get("/openapi.json")).json()
    texts = {"prompt": "x", "logprobs": 2, "echo": True, "max_tokens": 3}
    for method, path, body in (
        ("post", "/v1/completions", texts),
        ("post", "/v1/completions", {"prompt": "x", "temperature": -3}),
        ("post", "/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 1}),
        ("get", "/v1/models", None),
        ("post", "/tokenize", {"prompt": "x"}),
        ("post", "/detokenize", {"tokens": [65]}),
        ("get", "/tokenizer_info", None),
        ("get", "/health", None),
        ("get", "/version", None),
        ("get", "/load", None),
    ):
        answer = await service.http.request(method.upper(), path, json=body)
        responses = document["paths"][path][method]["responses"]
        described = responses.get(str(answer.status_code), responses["default"])
        schema = described["content"]["application/json"]["schema"]
        assert answer.status_code == (400 if body and "temperature" in body else 200)
        validator(document, schema).validate(answer.json())


async def test_bodies_are_as_described(start) -> None:
    service = await start()
    document = (await service.http.get("/openapi.json")).json()
    for path, body, right in (
        ("/v1/completions", {"prompt": [1, 2], "stop": "x", "seed": None}, True),
        ("/v1/completions", {"prompt": "x", "temperature": None, "stop": None}, True),
        ("/v1/completions", {"prompt": None}, False),
        ("/v1/completions", {"prompt": "x", "top_p": 3}, False),
        ("/v1/completions", {"prompt": "x", "medha": {"cache": 1}}, False),
        ("/v1/chat/completions", {**CHAT, "top_logprobs": None}, True),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "emperor", "content": "x"}]},
            False,
        ),
        ("/tokenize", {"prompt": "x", "messages": None}, True),
        ("/detokenize", {"tokens": [-1]}, False),
    ):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        assert (
            validator(document, content["application/json"]["schema"]).is_valid(body)
            == right
        )
        assert (await service.post(path, body)).status_code == (200 if right else 400)


async def test_a_server_is_reached_at_its_own_address(toy) -> None:
    async with (
        listening(observed(TelemetryConfig()).asgi()) as url,
        httpx.AsyncClient(base_url=url, follow_redirects=True) as http,
    ):
        page = await http.get("/")
    assert (page.url.path, page.status_code) == ("/medha", 200)
    assert "<title>Medha" in page.text
