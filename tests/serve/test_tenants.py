"""Whose share of the machine a request has."""

from pathlib import Path

import pytest

from deployments.tenants import HEADER
from medha_actors.config import ApiKeysConfig, SchedulerConfig
from medha_actors.tuning import FairnessConfig
from tests.serve.test_keys import ANN, BOB, TEXT, bearer

TRUSTING = SchedulerConfig(fairness=FairnessConfig(gateway_header=True))
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}


@pytest.fixture
def keys(tmp_path: Path) -> ApiKeysConfig:
    path = tmp_path / "keys"
    path.write_text(TEXT)
    return ApiKeysConfig(file=str(path))


async def tenant_of(
    service, headers: dict[str, str], path: str = "/v1/chat/completions"
) -> str:
    body = CHAT if "chat" in path else {"prompt": "x", "max_tokens": 1, "n": 2}
    response = await service.post(path, body, headers=headers)
    assert response.status_code == 200, response.text
    return service.engine.requests[-1].tenant


async def test_the_key_says_whose_it_is(start, keys) -> None:
    service = await start(api_keys=keys)
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert await tenant_of(service, bearer(ANN), path) == "ann"
        assert await tenant_of(service, bearer(BOB), path) == "research"
    assert await tenant_of(service, bearer(ANN) | {HEADER: "research"}) == "ann"


async def test_without_keys_and_without_trust_nobody_is_told_apart(start) -> None:
    service = await start()
    assert await tenant_of(service, {}) == ""
    assert await tenant_of(service, {HEADER: "research"}) == ""
    assert await tenant_of(service, bearer("whatever")) == ""


async def test_a_trusted_gateway_names_the_tenant(start, keys) -> None:
    service = await start(api_keys=keys, scheduler=TRUSTING)
    assert await tenant_of(service, bearer(ANN) | {HEADER: "team-7"}) == "team-7"
    assert await tenant_of(service, bearer(ANN)) == "ann"


@pytest.mark.parametrize("name", ["", "x" * 129])
async def test_what_is_no_name_is_refused(start, name: str) -> None:
    service = await start(scheduler=TRUSTING)
    response = await service.post("/v1/chat/completions", CHAT, headers={HEADER: name})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == HEADER
