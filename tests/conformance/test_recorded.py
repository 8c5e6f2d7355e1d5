"""What real tools sent, replayed to the real routes: each answer has the status that it had then,
and is what /openapi.json says of it. `python -m tests.conformance --scripted --record` records."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from deployments.server import Server
from tests.conformance.recording import FOLDER, Recorded, load
from tests.conformance.scripted import scripted_server
from tests.serve.conftest import listening

FILES = sorted(FOLDER.glob("*.json"))
CHATS_AND_COMPLETIONS = ("/v1/completions", "/v1/chat/completions")


@pytest.fixture(scope="module")
def server() -> Server:
    return scripted_server()


@pytest.fixture
async def http(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        listening(server.asgi()) as url,
        httpx.AsyncClient(base_url=url, timeout=20.0) as client,
    ):
        yield client


def check_events(path: str, text: str) -> None:
    """Every event is JSON, and the stream ends as its API says."""
    data = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    if path in CHATS_AND_COMPLETIONS:
        assert data.pop() == "[DONE]"
    events = [json.loads(event) for event in data]
    assert events
    if path in CHATS_AND_COMPLETIONS:
        choices = itertools.chain.from_iterable(event["choices"] for event in events)
        assert any(choice.get("finish_reason") for choice in choices)
    else:
        ends = ("response.completed", "response.incomplete", "message_stop")
        assert events[-1]["type"] in ends


def check_json(api: dict[str, Any], path: str, reply: Any) -> None:
    """It is of the kind that the description tells."""
    [described] = [
        row for row in api["paths"][path].values() if "200" in row["responses"]
    ]
    content = described["responses"]["200"]["content"]
    schema = content["application/json"]["schema"]
    Draft202012Validator({**schema, "components": api["components"]}).validate(reply)


def is_scoring(body: Any) -> bool:
    """Whether lm-eval asks how likely texts are, as token ids."""
    asked = body or {}
    if not (asked.get("echo") and asked.get("logprobs")):
        return False
    return isinstance(asked["prompt"], list) and isinstance(
        asked["prompt"][0], list | int
    )


def check_likelihoods(body: dict[str, Any], reply: dict[str, Any]) -> None:
    """What lm-eval reads: of every token of the prompt but the first, the log-probability, and
    whether it EQUALS the largest of those listed (here every token is the likeliest)."""
    prompts = (
        body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
    )
    assert [choice["index"] for choice in reply["choices"]] == list(range(len(prompts)))
    for prompt, choice in zip(prompts, reply["choices"], strict=True):
        told = choice["logprobs"]["token_logprobs"]
        tops = choice["logprobs"]["top_logprobs"]
        assert len(told) == len(prompt) + 1
        assert told[0] is None
        for value, top in zip(told[1:], tops[1:], strict=True):
            assert value == max(top.values())


async def replay(
    http: httpx.AsyncClient, api: dict[str, Any], recorded: Recorded
) -> None:
    response = await http.request(
        recorded.method, recorded.path, headers=recorded.headers, json=recorded.body
    )
    assert response.status_code == recorded.status, (recorded, response.text)
    path = recorded.path.partition("?")[0]
    kind = response.headers["content-type"]
    if recorded.status != 200 or path not in api["paths"]:
        return
    if kind.startswith("text/event-stream"):
        check_events(path, response.text)
    elif kind.startswith("application/json"):
        check_json(api, path, response.json())
        if is_scoring(recorded.body):
            check_likelihoods(recorded.body, response.json())


def test_there_are_recordings():
    assert FILES


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
async def test_what_a_tool_sends_is_answered(http, file) -> None:
    api = (await http.get("/openapi.json")).json()
    for recorded in load(file):
        await replay(http, api, recorded)
