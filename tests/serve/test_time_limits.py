"""A time limit in a header ends in our error object, or in an error frame, whoever enforces it."""

import asyncio
import json

import httpx
import pytest

from deployments.objectives import answer_within_s
from medha_actors.config import ObjectivesConfig
from tests.fakes import token

HEADERS = ["x-medha-timeout-seconds", "x-request-timeout-seconds"]


async def one_token(request):
    """An engine that stops after its first token."""
    yield token(request, 0, 65)
    await asyncio.Event().wait()


@pytest.mark.parametrize("header", HEADERS)
async def test_whole_answer(start, header: str) -> None:
    service = await start(one_token)
    response = await service.post(
        "/v1/completions", {"prompt": "x"}, headers={header: "0.2"}
    )
    assert response.status_code == 408
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("timeout_error", "request_timeout")
    await service.engine.until_all_cancelled()


@pytest.mark.parametrize("header", HEADERS)
async def test_stream(start, header: str) -> None:
    service = await start(one_token)
    body = {"prompt": "x", "stream": True}
    response = await service.post("/v1/completions", body, headers={header: "0.2"})
    assert response.status_code == 200
    frames = [part for part in response.text.split("\n\n") if part.startswith("data:")]
    assert json.loads(frames[0][5:])["choices"][0]["text"] == "A"
    assert json.loads(frames[-2][5:])["error"]["code"] == "request_timeout"
    assert frames[-1] == "data: [DONE]"
    await service.engine.until_all_cancelled()


@pytest.mark.parametrize("header", HEADERS)
async def test_a_body_that_does_not_come(start, header: str) -> None:
    service = await start()
    url = httpx.URL(service.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\n{header}: 0.2\r\ncontent-length: 9\r\n\r\n"
    writer.write(head.encode() + b"{")
    answer = await reader.readuntil(b"}}")
    writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer


async def test_a_wrong_limit_names_its_header(start) -> None:
    service = await start()
    for header in HEADERS:
        response = await service.post(
            "/v1/completions", {"prompt": "x"}, headers={header: "soon"}
        )
        assert (response.status_code, response.json()["error"]["param"]) == (
            400,
            header,
        )


def test_ahead_of_serve() -> None:
    policy = ObjectivesConfig(max_timeout_s=100.0)
    within = [
        answer_within_s({HEADERS[1]: value}, policy)
        for value in ("10", "1", "0", "1000")
    ]
    assert within == [9.5, 0.8, 99.5, 99.5]
    assert answer_within_s({HEADERS[0]: "10"}, policy) == 10
    assert answer_within_s({}, policy) is None
