"""/v1/messages: what is refused or fails, in Anthropic's words."""

from __future__ import annotations

import json

import pytest

from deployments.dialects import messages_body
from deployments.text import Text
from medha_actors.errors import RequestError
from medha_actors.messages import Rejected
from tests.fakes import finished, token
from tests.serve.messages_calls import WEATHER, ask, events_of

IMAGE = {"role": "user", "content": [{"type": "image", "source": {}}]}
RESULT = {
    "role": "user",
    "content": [
        {"type": "tool_result", "tool_use_id": "x", "content": [{"type": "image"}]}
    ],
}
CALL = {"role": "assistant", "content": [{"type": "tool_use", "id": "x"}]}


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [IMAGE]}, "messages[0].content[0].type"),
        ({"messages": [RESULT]}, "messages[0].content[0].content[0].type"),
        ({"messages": [CALL]}, "messages[0].tool_calls[0].function.name"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"nonsense": 1}, "nonsense"),
        ({"stop_sequences": ["x" * 10_000]}, "stop_sequences[0]"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        (
            {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
            "context_management.edits[0].type",
        ),
    ],
)
async def test_what_is_refused_has_its_name(start, fields: dict, name: str) -> None:
    service = await start()
    answer = await service.post("/v1/messages", ask(**fields))
    error = answer.json()
    assert (answer.status_code, error["type"]) == (400, "error")
    assert set(error["error"]) == {"type", "message"}
    assert error["error"]["type"] == "invalid_request_error"
    assert name in error["error"]["message"]
    assert service.engine.requests == []


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (429, 429, "rate_limit_error"),
        (503, 529, "overloaded_error"),
        (500, 500, "api_error"),
    ],
)
async def test_refusals_in_anthropics_words(
    start, status: int, said: int, kind: str
) -> None:
    def refuse(request):
        return Rejected(status=status, kind="x", message="full", retry_after_s=2.0)

    service = await start(answer=refuse)
    answer = await service.post("/v1/messages", ask())
    assert (answer.status_code, answer.json()) == (
        said,
        {"type": "error", "error": {"type": kind, "message": "full"}},
    )
    assert (answer.headers.get("retry-after") == "2") == (status in (429, 503))


async def test_conversations_are_not_kept(start) -> None:
    """Anthropic's SDK asks for that first, and goes on without if it is told so like this."""
    service = await start()
    answer = await service.post("/v1/messages", ask(thread={"type": "create"}))
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["details"] == {
        "error_code": "thread_unsupported_request",
        "unsupported": ["thread"],
    }


async def test_errors_that_no_route_says(toy: Text, start) -> None:
    service = await start()
    assert (await service.http.get("/v1/messages")).json()["type"] == "error"
    other = await service.post("/v1/messages", ask(model="claude"))
    assert (other.status_code, other.json()["error"]["type"]) == (
        404,
        "not_found_error",
    )
    late = await service.post(
        "/v1/messages", ask(), headers={"x-medha-timeout-seconds": "soon"}
    )
    assert (late.status_code, late.json()["type"]) == (400, "error")


async def test_a_stream_that_fails(start) -> None:
    async def script(request):
        yield token(request, 0, 65)
        yield finished(request, 1, "error", "a stage died")

    service = await start(script)
    events = events_of(await service.post("/v1/messages", ask(stream=True)))
    assert events[-1] == {
        "type": "error",
        "error": {"type": "api_error", "message": "a stage died"},
    }


def test_nonsense_is_a_request_error() -> None:
    for part in (
        {},
        {"type": 5},
        {"type": "text"},
        {"type": "tool_result", "content": 5},
    ):
        body = ask(messages=[{"role": "user", "content": [part]}])
        with pytest.raises(RequestError):
            messages_body.decode(json.dumps(body).encode()).chat(takes_effort=False)
