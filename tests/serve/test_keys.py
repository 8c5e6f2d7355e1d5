"""API keys: where they come from, what is kept of them, and what they are needed for."""

import base64
import logging
from hashlib import sha256
from pathlib import Path

import httpx
import openai
import pytest
from starlette.routing import Route

from deployments.keys import MAX_KEYS, load_keys
from deployments.launcher import drain_timeout_s
from medha_actors.config import ApiKeysConfig, TelemetryConfig
from medha_actors.errors import ConfigError
from tests.serve.test_about import observed
from tests.serve.test_launcher import config_of

ANN = "sk-ann-0123456789"
BOB = "sk-bob-0123456789"
TEXT = f"""
# who may ask
ann {ANN}
bob research sha256:{sha256(BOB.encode()).hexdigest()}  # his own words
sk-nobody-0123456789
"""


@pytest.fixture
def config(tmp_path: Path) -> ApiKeysConfig:
    path = tmp_path / "keys"
    path.write_text(TEXT)
    return ApiKeysConfig(file=str(path))


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def basic(user: str, password: str) -> dict[str, str]:
    return {
        "authorization": "Basic "
        + base64.b64encode(f"{user}:{password}".encode()).decode()
    }


def test_keys_of_a_file(config) -> None:
    keys = load_keys(config)
    assert keys is not None
    found = [
        keys.find(secret.encode()) for secret in (ANN, BOB, "sk-nobody-0123456789")
    ]
    assert [(key.name, key.tenant) for key in found if key] == [
        ("ann", "ann"),
        ("bob", "research"),
        ("key-5", "key-5"),
    ]
    for wrong in (
        "",
        ANN[:-1],
        ANN + " ",
        ANN.upper(),
        f"sha256:{sha256(BOB.encode()).hexdigest()}",
    ):
        assert keys.find(wrong.encode()) is None


def test_keys_of_the_environment_stand_beside_those_of_a_file(config) -> None:
    both = ApiKeysConfig(file=config.file, environment="KEYS")
    keys = load_keys(
        both, {"KEYS": "carl sk-carl-0123456789, dora lab sk-dora-0123456789\n"}
    )
    assert keys is not None
    assert len(keys) == 5
    dora = keys.find(b"sk-dora-0123456789")
    assert dora is not None
    assert (dora.name, dora.tenant) == ("dora", "lab")


def test_a_key_may_have_signs_of_its_own() -> None:
    secret = "a#b:c=d/e+f~0123456789"
    keys = load_keys(
        ApiKeysConfig(environment="KEYS"), {"KEYS": f"#none\n{secret} # his"}
    )
    assert keys is not None
    assert len(keys) == 1
    assert keys.find(secret.encode())


def test_no_keys_are_no_gate() -> None:
    assert load_keys(ApiKeysConfig()) is None


def test_nothing_shows_a_key(config) -> None:
    keys = load_keys(config)
    assert keys is not None
    digest = sha256(ANN.encode())
    shown = f"{keys!r} {keys.find(ANN.encode())!r} {vars(keys)}"
    for secret in (ANN, digest.hexdigest(), repr(digest.digest())):
        assert secret not in shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "api_keys: there is no key"),
        ("# none\n\n", "api_keys: there is no key"),
        ("short", "api_keys.file: line 1: a key has 16 to 512"),
        (f"ann {ANN}\na b c {BOB}", "api_keys.file: line 2 has 4 words"),
        (f"a,b {ANN}", "api_keys.file: line 1: a name has"),
        (f"ann {ANN}é", "api_keys.file: line 1: a key has"),
        (f"ann sha256:{'0' * 63}", "api_keys.file: line 1: after sha256:"),
        (
            f"ann sha256:{sha256(b'').hexdigest()}",
            "line 1: this is the digest of nothing",
        ),
        (f"ann {ANN}\nann {BOB}", "api_keys: ann is the name of two keys"),
        (f"ann {ANN}\nbob {ANN}", "api_keys: ann and bob are one key"),
        (
            "\n".join(f"sk-{i:013}" for i in range(MAX_KEYS + 1)),
            f"at most {MAX_KEYS} are",
        ),
        ("#" * 2**20 + "\n", "is over 1048576 bytes"),
    ],
)
def test_a_wrong_file_is_named_and_not_shown(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_keys(ApiKeysConfig(file=str(path)))
    assert message in caught.value.message
    assert caught.value.message.startswith("args: api_keys")
    assert ANN not in caught.value.message
    args = {"api_keys": {"file": str(path)}}
    with pytest.raises(ConfigError, match="api_keys"):  # before anything starts
        drain_timeout_s(config_of(tmp_path, args))


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"api_keys\.file: .*missing: No such file"):
        load_keys(ApiKeysConfig(file=str(tmp_path / "missing")))
    with pytest.raises(
        ConfigError, match=r"api_keys\.environment: there is no variable KEYS"
    ):
        load_keys(ApiKeysConfig(environment="KEYS"), {})
    with pytest.raises(ConfigError, match="there is no key"):
        load_keys(ApiKeysConfig(environment="KEYS"), {"KEYS": ""})
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not a text in UTF-8"):
        load_keys(ApiKeysConfig(file=str(tmp_path / "bytes")))


@pytest.fixture
async def http(config):
    app = observed(TelemetryConfig(), api_keys=config).asgi()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://medha"
    ) as client:
        client.routes = app.routes
        yield client


async def test_every_route_but_health_wants_a_key(http) -> None:
    for route in http.routes:
        assert isinstance(route, Route)
        for method in route.methods or ():
            answer = await http.request(method, route.path_format)
            if route.path in ("/health", "/ping"):
                assert answer.status_code == 200
                continue
            assert answer.status_code == 401, route.path
            scheme = answer.headers["www-authenticate"].split()[0]
            by_browser = method != "POST" and route.path.startswith(
                ("/medha", "/favicon")
            )
            assert scheme == ("Basic" if by_browser or route.path == "/" else "Bearer")


@pytest.mark.parametrize(
    "path",
    [
        "/nothing",
        "//health",
        "/health/",
        "/health/x",
        "/HEALTH",
        "/medha/%2e%2e/health",
        "",
    ],
)
async def test_what_is_no_route_wants_a_key_too(http, path: str) -> None:
    assert (await http.get(path)).status_code == 401


async def test_the_refusal_is_an_error_object(http) -> None:
    answer = await http.post(
        "/v1/completions", content=b"no JSON", headers=bearer("wrong")
    )
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (bearer(ANN), 200),
        (bearer(BOB), 200),
        ({"authorization": f"bearer  {ANN} "}, 200),
        ({"x-api-key": BOB}, 200),
        ({**bearer("wrong"), "x-api-key": BOB}, 200),
        ({"authorization": ANN}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": b"Bearer \xff\xfe"}, 401),
        (
            basic("ann", ANN),
            401,
        ),  # a browser sends it by itself, also for pages of others
        ({"x-api-key": ""}, 401),
        ({"cookie": f"key={ANN}"}, 401),
    ],
)
async def test_how_a_key_is_shown(http, headers, status: int) -> None:
    body = {"prompt": "x", "max_tokens": 1}
    assert (
        await http.post("/v1/completions", json=body, headers=headers)
    ).status_code == status
    assert (await http.get("/v1/models", headers=headers)).status_code == status


async def test_a_browser_sends_the_key_as_a_password(http) -> None:
    for path in ("/medha", "/favicon.ico", "/"):
        assert (await http.get(path, headers=basic("anybody", ANN))).status_code in (
            200,
            307,
        )
        assert (await http.get(path, headers=basic(ANN, "wrong"))).status_code == 401
        assert (
            await http.get(path, headers={"authorization": "Basic %%"})
        ).status_code == 401
    assert (await http.get("/metrics", headers=basic("ann", ANN))).status_code == 401


async def test_one_cache_for_each_key_however_it_is_shown(start, config) -> None:
    service = await start(api_keys=config)

    async def salt(headers: dict[str, str]) -> str:
        body = {"prompt": "x", "max_tokens": 1}
        await service.post("/v1/completions", body, headers=headers)
        return service.engine.requests[-1].cache_salt

    salts = [
        await salt(headers)
        for headers in (bearer(ANN), bearer(BOB), {"x-api-key": ANN})
    ]
    assert salts[0] == salts[2] != salts[1]
    assert not any(
        ANN in salt or sha256(ANN.encode()).hexdigest() in salt for salt in salts
    )


async def test_openais_client(start, config, caplog) -> None:
    caplog.set_level(logging.DEBUG, logger="deployments")
    service = await start(api_keys=config)
    url = f"{service.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=ANN) as client:
        answer = await client.completions.create(model="toy", prompt="x", max_tokens=5)
        assert answer.choices[0].text == "Hello"
    async with openai.AsyncOpenAI(base_url=url, api_key="wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.completions.create(model="toy", prompt="x")
    assert ANN not in caplog.text


async def test_the_description_tells_of_keys(http, start) -> None:
    document = (await http.get("/openapi.json", headers=bearer(ANN))).json()
    assert document["security"] == [{"bearer": []}, {"header": []}]
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    assert document["paths"]["/health"]["get"]["security"] == []
    open_to_all = (await (await start()).http.get("/openapi.json")).json()
    assert "security" not in open_to_all
