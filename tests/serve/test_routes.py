"""The other routes, refusals and errors, over real HTTP."""

from datetime import datetime

import httpx
import pytest

from deployments.server import Server
from medha_actors.config import LimitsConfig, MedhaConfig, ObjectivesConfig
from medha_actors.messages import Rejected
from tests.fakes import FakeEngine, saying
from tests.serve.conftest import MODEL, listening

EOS = 256
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/completions", {"prompt": "x", "model": "gpt-5"}, 404, "model"),
        ("/v1/completions", {"prompt": ""}, 400, "prompt"),
        ("/v1/completions", {"prompt": ["a", ""]}, 400, "prompt[1]"),
        ("/v1/completions", {"prompt": "x" * 4096}, 400, "prompt"),
        ("/v1/completions", {"prompt": "x" * 100_000}, 400, "prompt"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 4096}, 400, "max_tokens"),
        ("/v1/completions", {}, 400, "prompt"),
        (
            "/v1/completions",
            {"prompt": "x", "medha": {"ttft_s": "soon"}},
            400,
            "medha.ttft_s",
        ),
        ("/v1/chat/completions", {"messages": []}, 400, "messages"),
        (
            "/v1/chat/completions",
            {**CHAT, "tools": [{"type": "function"}]},
            400,
            "tools[0].function",
        ),
        ("/tokenize", {}, 400, "prompt"),
        ("/detokenize", {"tokens": [512]}, 400, "tokens"),
        ("/detokenize", {"tokens": "x"}, 400, "tokens"),
    ],
)
async def test_bad_requests(
    start, path: str, body: dict, status: int, param: str
) -> None:
    service = await start()
    response = await service.post(path, body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["x-request-id"]
    assert service.engine.requests == []


async def test_bad_header_names_itself(start) -> None:
    service = await start()
    response = await service.post(
        "/v1/completions", {"prompt": "x"}, headers={"x-slo-ttft-ms": "nan"}
    )
    assert (response.status_code, response.json()["error"]["param"]) == (
        400,
        "x-slo-ttft-ms",
    )


async def test_body_limit(start) -> None:
    service = await start(limits=LimitsConfig(max_body_bytes=2000))
    assert (
        await service.post("/v1/completions", {"prompt": "x" * 3000})
    ).status_code == 413

    async def pieces():  # no content-length: counted while it arrives
        for _ in range(30):
            yield b"x" * 100

    assert (await service.http.post("/tokenize", content=pieces())).status_code == 413
    assert (await service.http.post("/v1/completions", content=b"{")).status_code == 400


@pytest.mark.parametrize("stream", [False, True])
async def test_rejections_keep_their_status(start, stream: bool) -> None:
    def refuse(request):
        return Rejected(
            status=429,
            kind="overloaded_error",
            message="full",
            code="queue_full",
            retry_after_s=2.2,
        )

    service = await start(answer=refuse)
    response = await service.post("/v1/completions", {"prompt": "x", "stream": stream})
    assert response.status_code == 429
    assert response.json()["error"] == {
        "message": "full",
        "type": "overloaded_error",
        "param": None,
        "code": "queue_full",
    }
    assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == (
        "3",
        "2200",
    )
    assert "x-should-retry" not in response.headers


async def test_one_refused_choice_refuses_all(start) -> None:
    from tests.fakes import accept

    def second(request):
        if request.id.endswith("-1"):
            return Rejected(status=400, kind="invalid_request_error", message="no")
        return accept(request)

    service = await start(answer=second)
    assert (
        await service.post("/v1/completions", {"prompt": "x", "n": 3})
    ).status_code == 400
    await service.engine.until_all_cancelled()
    assert len(service.engine.requests) == 2


async def test_behind_a_proxy_that_echoes_the_request_id(toy) -> None:
    server = Server(
        MedhaConfig(model_loading_config=MODEL),
        FakeEngine(saying(b"x")),
        toy,
        echo_request_id=False,
    )
    async with listening(server.asgi()) as url, httpx.AsyncClient(base_url=url) as http:
        assert "x-request-id" not in (await http.get("/health")).headers
        assert (
            "x-request-id"
            not in (await http.post("/v1/completions", json={"prompt": "x"})).headers
        )


async def test_engine_not_ready(start) -> None:
    service = await start()
    assert (await service.http.get("/health")).status_code == 200
    service.engine.is_ready = False
    for response in (
        await service.http.get("/health"),
        await service.post("/v1/completions", {"prompt": "x"}),
    ):
        assert response.status_code == 503
        assert response.headers["retry-after"] == "2"


async def test_models(start) -> None:
    service = await start()
    [model] = (await service.http.get("/v1/models")).json()["data"]
    assert (model["id"], model["root"], model["max_model_len"]) == (
        "toy",
        "random",
        4096,
    )
    assert datetime.fromisoformat(model["created_at"]).timestamp() == model["created"]
    assert (await service.http.get("/v1/models/toy")).json() == model
    assert (await service.http.get("/v1/models/a/b")).status_code == 404


async def test_tokenize_and_back(start) -> None:
    service = await start()
    answer = (
        await service.post("/tokenize", {"prompt": "hé", "return_token_strs": True})
    ).json()
    assert (answer["tokens"], answer["count"], answer["max_model_len"]) == (
        [104, 195, 169],
        3,
        4096,
    )
    assert len(answer["token_strs"]) == 3
    assert (await service.post("/detokenize", {"tokens": answer["tokens"]})).json() == {
        "prompt": "hé"
    }
    answer = (
        await service.post("/tokenize", {**CHAT, "add_generation_prompt": False})
    ).json()
    assert bytes(answer["tokens"]) == b"user: hi\n"


async def test_unknown_routes(start) -> None:
    service = await start()
    missing = await service.http.get("/v1/embeddings")
    assert (missing.status_code, missing.json()["error"]["code"]) == (
        404,
        "no_such_route",
    )
    wrong = await service.http.get("/v1/completions")
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (
        405,
        "invalid_request_error",
    )


async def test_policy_bounds_what_clients_ask(start) -> None:
    service = await start(
        objectives=ObjectivesConfig(min_ttft_s=1.0, max_timeout_s=30.0)
    )
    await service.post(
        "/v1/completions",
        {"prompt": "x", "medha": {"ttft_s": 0.001}},
        headers={"x-request-timeout-seconds": "-1"},
    )
    objectives = service.engine.requests[0].objectives
    assert (objectives.ttft_s, objectives.timeout_s) == (1.0, 30.0)


async def test_a_bug_is_not_shown_to_clients(start, caplog) -> None:
    service = await start()
    service.server.admission.completion = None  # type: ignore[assignment]
    response: httpx.Response = await service.post("/v1/completions", {"prompt": "x"})
    assert response.status_code == 500
    assert "NoneType" not in response.text
    assert "should not happen" in caplog.text
