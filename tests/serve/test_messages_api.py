"""/v1/messages: Anthropic's words, whole and in streams, as its SDK reads them."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from deployments.dialects import messages_body
from deployments.server import Server
from deployments.text import Text
from medha_actors.config import ApiKeysConfig, MedhaConfig
from medha_actors.messages import unpack_tokens
from tests.fakes import FakeEngine, saying
from tests.serve.conftest import EOS, MODEL, listening
from tests.serve.messages_calls import CLOCK, HI, WEATHER, ask, events_of

ROME = '{"name": "weather", "arguments": {"city": "Rome"}}'
BOTH = f'[{ROME}, {{"name": "clock", "arguments": {{}}}}]'


def prompt_of(engine: FakeEngine) -> str:
    return bytes(unpack_tokens(engine.requests[-1].prompt_token_ids)).decode()


async def test_a_text(start) -> None:
    service = await start()
    system = [
        {"type": "text", "text": "be kind", "cache_control": {"type": "ephemeral"}}
    ]
    body = ask(
        system=system, metadata={"user_id": "me"}, temperature=0.5, top_k=3, top_p=0.9
    )
    answer = await service.post("/v1/messages", body, headers={"x-request-id": "r1"})
    assert answer.json() == {
        "id": "msg_r1",
        "type": "message",
        "role": "assistant",
        "model": "toy",
        "content": [{"type": "text", "text": "Hello world"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 36,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 12,
        },
    }
    assert prompt_of(service.engine) == "system: be kind\nuser: hi\nassistant: "
    sampling = service.engine.requests[0].sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k) == (100, 0.5, 3)
    assert answer.headers["x-medha-ttft-deadline-ms"] == "2500.0"


async def test_a_stream(start) -> None:
    service = await start(saying(b"Hi", EOS))
    headers = {"x-request-id": "r1"}
    answer = await service.post("/v1/messages", ask(stream=True), headers=headers)
    usage = {
        "input_tokens": 20,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 0,
    }
    message = {
        "id": "msg_r1",
        "type": "message",
        "role": "assistant",
        "model": "toy",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    assert events_of(answer) == [
        {"type": "message_start", "message": message},
        {"type": "ping"},
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "text", "text": ""},
        },
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": "H"},
        },
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": "i"},
        },
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {**usage, "output_tokens": 3},
        },
        {"type": "message_stop"},
    ]


async def test_calls_and_their_results(start) -> None:
    service = await start(saying(BOTH.encode(), EOS))
    tools = [WEATHER, CLOCK]
    answer = (await service.post("/v1/messages", ask(tools=tools))).json()
    weather, clock = answer["content"]
    assert answer["stop_reason"] == "tool_use"
    assert (weather["type"], weather["name"], weather["input"]) == (
        "tool_use",
        "weather",
        {"city": "Rome"},
    )
    assert (clock["name"], clock["input"]) == ("clock", {})
    results = [
        {"type": "tool_result", "tool_use_id": weather["id"], "content": "sunny"},
        {
            "type": "tool_result",
            "tool_use_id": clock["id"],
            "content": [{"type": "text", "text": "noon"}],
            "is_error": False,
            "cache_control": {"type": "ephemeral"},
        },
        {"type": "text", "text": "well?"},
    ]
    history = [
        *HI,
        {"role": "assistant", "content": answer["content"]},
        {"role": "user", "content": results},
    ]
    await service.post("/v1/messages", ask(messages=history, tools=tools))
    prompt = prompt_of(service.engine)
    assert prompt.count("<tool_call>") == 2
    assert prompt.endswith(
        "user: <tool_response>\nsunny\n</tool_response>\n<tool_response>\nnoon\n</tool_response>\n"
        "user: well?\nassistant: "
    )


async def test_calls_in_a_stream(start) -> None:
    service = await start(saying(BOTH.encode(), EOS))
    body = ask(tools=[WEATHER, CLOCK], stream=True)
    events = events_of(await service.post("/v1/messages", body))
    begun = [event for event in events if event["type"] == "content_block_start"]
    assert [(one["index"], one["content_block"]["name"]) for one in begun] == [
        (0, "weather"),
        (1, "clock"),
    ]
    parts = [
        event["delta"]["partial_json"]
        for event in events
        if event["type"] == "content_block_delta" and event["index"] == 0
    ]
    assert "".join(parts) == '{"city": "Rome"}'
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    stopped = [
        event["index"] for event in events if event["type"] == "content_block_stop"
    ]
    assert stopped == [0, 1]


def test_tool_choice() -> None:
    def chosen(choice: dict[str, Any]) -> Any:
        body = ask(tools=[WEATHER], tool_choice=choice)
        chat = messages_body.decode(json.dumps(body).encode()).chat(takes_effort=False)
        return chat.tool_choice, chat.parallel_tool_calls

    assert chosen({"type": "auto"}) == ("auto", True)
    assert chosen({"type": "any", "disable_parallel_tool_use": True}) == (
        "required",
        False,
    )
    assert chosen({"type": "none"}) == ("none", True)
    named, _ = chosen({"type": "tool", "name": "weather"})
    assert named.function.name == "weather"


@pytest.mark.parametrize("stream", [False, True])
async def test_why_an_answer_ended(start, stream: bool) -> None:
    service = await start(saying(b"Hello world", EOS))

    async def reason(**fields: Any) -> tuple[str, str | None]:
        answer = await service.post("/v1/messages", ask(stream=stream, **fields))
        ended = events_of(answer)[-2]["delta"] if stream else answer.json()
        return ended["stop_reason"], ended["stop_sequence"]

    assert await reason() == ("end_turn", None)
    assert await reason(max_tokens=5) == ("max_tokens", None)
    assert await reason(stop_sequences=["wor", "x"]) == ("stop_sequence", "wor")


async def test_more_than_the_context_has_room_for(start) -> None:
    service = await start(saying(b"a" * 5000))
    answer = (await service.post("/v1/messages", ask(max_tokens=32_000))).json()
    assert answer["stop_reason"] == "model_context_window_exceeded"
    assert answer["usage"]["output_tokens"] == 4096 - 20


async def test_an_answer_begun_by_the_client_goes_on(start) -> None:
    service = await start()
    history = [*HI, {"role": "assistant", "content": "Oh, h"}]
    await service.post("/v1/messages", ask(messages=history))
    assert prompt_of(service.engine) == "user: hi\nassistant: Oh, h"


async def test_counting(start) -> None:
    service = await start()
    body = {"model": "toy", "messages": HI, "system": "be kind"}
    answer = await service.post("/v1/messages/count_tokens", body)
    assert answer.json() == {"input_tokens": 36}
    with_tools = await service.post(
        "/v1/messages/count_tokens", {**body, "tools": [WEATHER]}
    )
    assert with_tools.json()["input_tokens"] > 36
    wrong = await service.post("/v1/messages/count_tokens", {"messages": 5})
    assert (wrong.status_code, wrong.json()["type"]) == (400, "error")
    assert service.engine.requests == []


async def test_a_key_as_anthropics_clients_show_it(toy: Text, monkeypatch) -> None:
    monkeypatch.setenv("KEYS", "sixteen-characters")
    config = MedhaConfig(
        model_loading_config=MODEL, api_keys=ApiKeysConfig(environment="KEYS")
    )
    server = Server(config, FakeEngine(saying(b"Hi", EOS)), toy)
    async with listening(server.asgi()) as url, httpx.AsyncClient(base_url=url) as http:
        refused = await http.post("/v1/messages", json=ask())
        assert (refused.status_code, refused.json()["error"]["type"]) == (
            401,
            "authentication_error",
        )
        headers = {"x-api-key": "sixteen-characters", "anthropic-version": "2023-06-01"}
        answer = await http.post("/v1/messages?beta=true", json=ask(), headers=headers)
        assert answer.status_code == 200


def test_thinking_is_told_to_the_template() -> None:
    def told(takes_effort: bool, **fields: Any) -> tuple[dict[str, Any], str | None]:
        body = json.dumps(ask(**fields)).encode()
        chat = messages_body.decode(body).chat(takes_effort)
        return chat.chat_template_kwargs, chat.reasoning_effort

    budget = {"type": "enabled", "budget_tokens": 1024}
    assert told(True, thinking=budget) == ({"enable_thinking": True}, None)
    assert told(True, thinking={"type": "disabled"}) == (
        {"enable_thinking": False},
        None,
    )
    assert told(True, output_config={"effort": "low"}) == ({}, "low")
    assert told(False, output_config={"effort": "low"}) == ({}, None)


def test_thoughts_stay_with_their_turn() -> None:
    parts = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "so"},
        {"type": "tool_use", "id": "c", "name": "clock", "input": {"zone": 1}},
    ]
    body = ask(messages=[*HI, {"role": "assistant", "content": parts}])
    chat = messages_body.decode(json.dumps(body).encode()).chat(takes_effort=False)
    said = chat.messages[1]
    assert (said.text, said.reasoning_content) == ("so", "hm")
    assert said.tool_calls[0].function.parsed() == {"zone": 1}
    assert not chat.continue_final_message
