"""Pages of other origins: who may read answers in a browser."""

import re

import httpx
import pytest

from medha_actors.config import ApiKeysConfig, CorsConfig, TelemetryConfig, load
from medha_actors.errors import ConfigError
from tests.serve.test_about import observed

ALLOW = "access-control-allow-origin"
BODY = {"prompt": "x", "max_tokens": 1, "stream": True}


async def question(http: httpx.AsyncClient, origin: str, path: str = "/v1/completions"):
    """What a browser asks before it sends JSON with a key."""
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization, content-type, x-stainless-os",
    }
    return await http.request("OPTIONS", path, headers=headers)


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        (("loopback",), "http://localhost:3000", True),
        (("loopback",), "https://127.0.0.1", True),
        (("loopback",), "http://127.3.2.1:80", True),
        (("loopback",), "http://[::1]:5173", True),
        (("loopback",), "http://app.localhost:8080", True),
        (("loopback",), "http://localhost.evil.example", False),
        (("loopback",), "http://evil.example", False),
        (("loopback",), "http://127.0.0.1.evil.example", False),
        (("loopback",), "http://evil.example:80#localhost", False),
        (("loopback",), "http://notlocalhost", False),
        (("loopback",), "null", False),
        (("https://chat.example",), "https://chat.example", True),
        (("https://chat.example",), "http://chat.example", False),
        (("https://chat.example",), "http://localhost", False),
        (("https://chat.example", "loopback"), "http://localhost", True),
        (("*",), "https://anything.example", True),
        ((), "http://localhost", False),
    ],
)
async def test_which_origins(start, origins, origin: str, allowed: bool) -> None:
    service = await start(cors=CorsConfig(origins=origins))
    asked = await question(service.http, origin)
    answer = await service.post("/v1/completions", BODY, headers={"origin": origin})
    # the browser, not the server, keeps it away
    assert answer.text.endswith("data: [DONE]\n\n")
    for response in (asked, answer):
        shown = response.headers.get(ALLOW)
        assert (shown in (origin, "*")) == allowed
        assert shown is None or allowed
    assert asked.status_code == (200 if allowed else 405 if not origins else 400)
    if allowed:
        assert "authorization" in asked.headers["access-control-allow-headers"]
        assert "POST" in asked.headers["access-control-allow-methods"]
        assert "x-medha-trace-id" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-credentials" not in answer.headers


async def test_errors_can_be_read_too(start) -> None:
    service = await start()
    origin = {"origin": "http://localhost:3000"}
    for answer in (
        await service.post("/v1/completions", {"prompt": ""}, headers=origin),
        await service.http.get("/nothing", headers=origin),
        await service.http.delete("/health", headers=origin),
    ):
        assert answer.headers[ALLOW] == origin["origin"]
        assert answer.json()["error"]["message"]


async def test_a_plain_question_for_options_is_a_wrong_method(start) -> None:
    service = await start()
    answer = await service.http.options("/v1/completions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (
        405,
        "method_not_allowed",
    )


async def test_the_question_needs_no_key_and_the_refusal_can_be_read(tmp_path) -> None:
    (tmp_path / "keys").write_text("sk-ann-0123456789")
    app = observed(
        TelemetryConfig(), api_keys=ApiKeysConfig(file=str(tmp_path / "keys"))
    ).asgi()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://medha") as http:
        assert (await question(http, "http://localhost")).status_code == 200
        answer = await http.post(
            "/v1/completions", headers={"origin": "http://localhost"}
        )
    assert (answer.status_code, answer.headers[ALLOW]) == (401, "http://localhost")


@pytest.mark.parametrize(
    "origin", ["", "chat.example", "https://chat.example/", "https://*.x", 3]
)
def test_a_wrong_origin_is_named(origin: object) -> None:
    with pytest.raises(ConfigError, match=re.escape("args.cors.origins[1]")):
        load({"cors": {"origins": ["loopback", origin]}})
