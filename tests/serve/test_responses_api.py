"""/v1/responses, with OpenAI's own client and over plain HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pydantic
import pytest
from openai.types.responses import Response

from deployments.dialects import responses_body
from medha_actors.errors import RequestError
from medha_actors.messages import unpack_tokens
from tests.fakes import FakeEngine, finished, saying, token
from tests.serve.conftest import EOS, openai_clients

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": PARAMETERS,
    "strict": True,
}
CLOCK = {"type": "function", "name": "clock"}
ROME = '{"name": "weather", "arguments": {"city": "Rome"}}'
BOTH = f'[{ROME}, {{"name": "clock", "arguments": {{}}}}]'


def prompt_of(engine: FakeEngine) -> str:
    return bytes(unpack_tokens(engine.requests[-1].prompt_token_ids)).decode()


@pytest.fixture
async def ask(start) -> AsyncIterator:
    async with openai_clients(start, max_retries=0) as begin:
        yield begin


async def events_of(stream: Any) -> list[Any]:
    """All events, each of the shape that OpenAI's types say, and numbered."""
    events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for event in events:
        type(event).model_validate(event.model_dump(by_alias=True, warnings=False))
    return events


async def test_a_text(ask) -> None:
    client, service = await ask()
    answer = await client.responses.create(
        model="toy",
        input="hi",
        instructions="be kind",
        store=False,
        metadata={"a": "b"},
        user="me",
        max_output_tokens=100,
    )
    Response.model_validate(answer.model_dump())
    assert answer.output_text == "Hello world"
    assert (answer.status, answer.object, answer.id[:5]) == (
        "completed",
        "response",
        "resp_",
    )
    assert (answer.metadata, answer.instructions) == ({"a": "b"}, "be kind")
    assert answer.usage.total_tokens == answer.usage.input_tokens + 12
    assert answer.usage.input_tokens_details.cached_tokens == 0
    assert prompt_of(service.engine) == "system: be kind\nuser: hi\nassistant: "
    assert service.engine.requests[0].sampling.max_tokens == 100


async def test_a_stream(ask) -> None:
    client, _ = await ask()
    stream = await client.responses.create(model="toy", input="hi", stream=True)
    events = await events_of(stream)
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * 11,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    deltas = [
        event.delta for event in events if event.type == "response.output_text.delta"
    ]
    assert "".join(deltas) == "Hello world"
    assert events[0].response.status == "in_progress"
    assert events[-1].response.output_text == "Hello world"
    assert events[-1].response.usage.output_tokens == 12


async def test_headers_tell_of_deadlines(start) -> None:
    service = await start()
    body = {"input": "hi", "stream": True, "medha": {"ttft_s": 2.5}}
    answer = await service.post("/v1/responses", body)
    assert answer.headers["x-medha-ttft-deadline-ms"] == "2500.0"
    assert "[DONE]" not in answer.text


async def test_the_stream_helper(ask) -> None:
    client, _ = await ask(saying(b'{"city": "Rome"}', EOS))

    class Place(pydantic.BaseModel):
        city: str

    async with client.responses.stream(
        model="toy", input="where?", text_format=Place
    ) as stream:
        answer = await stream.get_final_response()
    assert answer.output_parsed == Place(city="Rome")


async def test_calls(ask) -> None:
    client, service = await ask(saying(BOTH.encode(), EOS))
    answer = await client.responses.create(
        model="toy", input="hi", tools=[WEATHER, CLOCK]
    )
    weather, clock = answer.output
    assert (weather.type, weather.name, weather.arguments) == (
        "function_call",
        "weather",
        '{"city": "Rome"}',
    )
    assert (clock.name, clock.arguments) == ("clock", "{}")
    history = [
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        *[item.model_dump() for item in answer.output],
        {"type": "function_call_output", "call_id": weather.call_id, "output": "sunny"},
        {"type": "function_call_output", "call_id": clock.call_id, "output": "noon"},
    ]
    await client.responses.create(model="toy", input=history, tools=[WEATHER, CLOCK])
    prompt = prompt_of(service.engine)
    assert prompt.count("<tool_call>") == 2
    assert "assistant: <tool_call>" in prompt
    assert "<tool_response>\nsunny\n</tool_response>\n<tool_response>\nnoon" in prompt


async def test_calls_in_a_stream(ask) -> None:
    client, _ = await ask(saying(BOTH.encode(), EOS))
    stream = await client.responses.create(
        model="toy", input="hi", tools=[WEATHER, CLOCK], stream=True
    )
    events = await events_of(stream)
    added = [event for event in events if event.type == "response.output_item.added"]
    done = [
        event
        for event in events
        if event.type == "response.function_call_arguments.done"
    ]
    assert [(event.output_index, event.item.name) for event in added] == [
        (0, "weather"),
        (1, "clock"),
    ]
    assert [event.arguments for event in done] == ['{"city": "Rome"}', "{}"]
    deltas = [
        event.delta
        for event in events
        if event.type == "response.function_call_arguments.delta"
        and event.output_index == 0
    ]
    assert "".join(deltas) == '{"city": "Rome"}'
    assert events[-1].response.output[1].call_id.startswith("call_")


async def test_an_answer_that_was_cut(ask) -> None:
    client, _ = await ask(saying(b"Hello world"))
    answer = await client.responses.create(model="toy", input="hi", max_output_tokens=5)
    assert (answer.status, answer.output_text) == ("incomplete", "Hello")
    assert answer.incomplete_details.reason == "max_output_tokens"
    stream = await client.responses.create(
        model="toy", input="hi", max_output_tokens=5, stream=True
    )
    events = await events_of(stream)
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output[0].status == "incomplete"


async def test_nothing_is_a_text_too(ask) -> None:
    client, _ = await ask(saying(b"", EOS))
    answer = await client.responses.create(model="toy", input="hi")
    assert [item.type for item in answer.output] == ["message"]
    assert answer.output_text == ""


async def test_a_stream_that_fails(ask) -> None:
    async def script(request):
        yield token(request, 0, 65)
        yield finished(request, 1, "error", "a stage died")

    client, _ = await ask(script)
    stream = await client.responses.create(model="toy", input="hi", stream=True)
    events = await events_of(stream)
    assert events[-1].type == "response.failed"
    assert events[-1].response.error.message == "a stage died"
    assert events[-1].response.output[0].content[0].text == "A"


async def test_a_stream_whose_time_is_over_fails_in_its_own_words(start) -> None:
    async def script(request):
        yield token(request, 0, 65)
        await asyncio.Event().wait()

    service = await start(script)
    body = {"input": "hi", "stream": True}
    headers = {"x-medha-timeout-seconds": "0.3"}
    answer = await service.post("/v1/responses", body, headers=headers)
    last = answer.text.strip().rpartition("\n\n")[2]
    assert last.startswith("event: response.failed\n")


async def test_log_probabilities(ask) -> None:
    client, _ = await ask()
    answer = await client.responses.create(
        model="toy",
        input="hi",
        include=["message.output_text.logprobs"],
        top_logprobs=1,
    )
    [part] = answer.output[0].content
    assert "".join(entry.token for entry in part.logprobs[:11]) == "Hello world"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"nonsense": 1}, "nonsense"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 5000}, "max_output_tokens"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tools": [WEATHER], "tool_choice": {"type": "mcp"}}, "tool_choice.type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"medha": {"progress": True}}, "medha.progress"),
    ],
)
async def test_what_is_refused_has_its_name(start, fields: dict, param: str) -> None:
    service = await start()
    answer = await service.post("/v1/responses", {"input": "hi", **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(param) or param in error["message"]
    assert service.engine.requests == []


async def test_it_cannot_be_resumed(start) -> None:
    service = await start()
    answer = await service.post(
        "/v1/responses", {"input": "hi"}, headers={"x-medha-resume": "resp_1:2"}
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (
        400,
        "x-medha-resume",
    )


def test_thoughts_stay_with_their_turn() -> None:
    body = {
        "input": [
            {"role": "user", "content": "hi"},
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "hm"}],
            },
            {
                "type": "function_call",
                "call_id": "c",
                "name": "clock",
                "arguments": "{}",
            },
            {"type": "function_call_output", "call_id": "c", "output": "noon"},
        ]
    }
    chat = responses_body.decode(json.dumps(body).encode()).chat()
    assert [message.role for message in chat.messages] == ["user", "assistant", "tool"]
    assert chat.messages[1].reasoning_content == "hm"
    assert chat.messages[1].tool_calls[0].id == "c"


def test_unnamed_nonsense_is_a_request_error() -> None:
    for item in (
        {"type": 5},
        {"role": 5, "content": 5},
        {"type": "function_call", "name": 5},
    ):
        with pytest.raises(RequestError):
            responses_body.decode(json.dumps({"input": [item]}).encode()).chat()


async def test_counting_tokens(ask) -> None:
    client, service = await ask()
    asked: dict[str, Any] = {"model": "toy", "input": "hi", "instructions": "be kind"}
    counted = await client.responses.input_tokens.count(**asked)
    assert counted.object == "response.input_tokens"
    answer = await client.responses.create(**asked, max_output_tokens=1)
    assert counted.input_tokens == answer.usage.input_tokens
    with_tools = await client.responses.input_tokens.count(**asked, tools=[WEATHER])
    assert with_tools.input_tokens > counted.input_tokens
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.input_tokens.count(model="toy", input="x" * 200_000)
    assert (caught.value.code, caught.value.param) == (
        "context_length_exceeded",
        "input",
    )
    assert len(service.engine.requests) == 1
