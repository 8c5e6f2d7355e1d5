"""Anthropic's SDK: messages, streams, tools, schemas, counting, the tool runner, errors."""

from __future__ import annotations

import functools
from typing import Any

import anthropic
from checks import LONG, MODEL, QUESTION, URL, WEATHER, check, end, error_of

client = anthropic.Anthropic(base_url=URL, api_key="none")
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
TOOLS: Any = [
    {"name": "get_weather", "description": "The weather.", "input_schema": WEATHER}
]
CACHED: Any = [
    {"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}}
]


def of_its_type(value: Any) -> None:
    """The SDK checks nothing by itself: no field is absent, null, or of another kind."""
    type(value).model_validate_json(
        value.model_dump_json(by_alias=True, warnings=False)
    )


@anthropic.beta_tool
def get_time(place: str) -> str:
    """The time somewhere.

    Args:
        place: where
    """
    return f"noon in {place}"


with check("message"):
    message = client.messages.create(
        model=MODEL,
        max_tokens=8,
        messages=MESSAGES,
        system=CACHED,
        stop_sequences=["###"],
    )
    of_its_type(message)
    assert message.content[0].type == "text"
    assert message.usage.output_tokens > 0

with (
    check("stream"),
    client.messages.stream(model=MODEL, max_tokens=8, messages=MESSAGES) as stream,
):
    events = list(stream)
    for event in events:
        of_its_type(event)
    kinds = {event.type for event in events}
    assert {"message_start", "content_block_delta", "message_stop"} <= kinds
    assert stream.get_final_message().stop_reason in ("end_turn", "max_tokens")

with check("models"):
    for model in (*client.models.list(limit=10), client.models.retrieve(MODEL)):
        of_its_type(model)
        assert model.id == MODEL
        assert model.max_input_tokens > 0

with check("thinking asked for"):
    client.messages.create(
        model=MODEL,
        max_tokens=1030,
        messages=MESSAGES,
        thinking={"type": "enabled", "budget_tokens": 1024},
        stop_sequences=["."],
    )

with check("forced tool, and its result"):
    asked: Any = {"model": MODEL, "max_tokens": 100, "tools": TOOLS}
    message = client.messages.create(
        **asked, messages=MESSAGES, tool_choice={"type": "tool", "name": "get_weather"}
    )
    [call] = [block for block in message.content if block.type == "tool_use"]
    assert set(call.input) == {"city", "unit"}
    assert message.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "12 degrees"}
    history: Any = [
        *MESSAGES,
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result]},
    ]
    client.messages.create(**asked, messages=history)

with (
    check("forced tool, streamed"),
    client.messages.stream(
        **asked, messages=MESSAGES, tool_choice={"type": "any"}
    ) as stream,
):
    final = stream.get_final_message()
    assert final.content[0].input["unit"] in ("celsius", "fahrenheit")

with check("counting"):
    counted = client.messages.count_tokens(model=MODEL, messages=history, tools=TOOLS)
    assert counted.input_tokens > 10

with check("tool runner"):
    runner = client.beta.messages.tool_runner(
        model=MODEL, max_tokens=60, tools=[get_time], messages=MESSAGES
    )
    assert runner.until_done().role == "assistant"

with check("errors are its classes"):
    for wrong, kind in (
        ({"extra_body": {"temperature": -1.0}}, anthropic.BadRequestError),
        ({"model": "other"}, anthropic.NotFoundError),
    ):
        fields: Any = {"model": MODEL, "max_tokens": 5, "messages": MESSAGES, **wrong}
        error = error_of(functools.partial(client.messages.create, **fields))
        assert isinstance(error, kind), error
        assert error.body["type"] == "error"

with check("a prompt that does not fit"):
    long: Any = [{"role": "user", "content": LONG}]
    error = error_of(
        lambda: client.messages.create(model=MODEL, max_tokens=5, messages=long)
    )
    assert isinstance(error, anthropic.BadRequestError), error
    told = "it does not say `prompt is too long`, for which agents look"
    assert "prompt is too long" in error.message, told

end()
