"""The official Python client: completions, chats, tools, schemas, responses, streams, errors."""

from __future__ import annotations

import functools
import json
from typing import Any, Literal

import openai
import pydantic
from checks import MODEL, QUESTION, URL, WEATHER, check, end, error_of

client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", timeout=600)
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": WEATHER},
}
RESPONSES_TOOL: Any = {"type": "function", "name": "get_weather", "parameters": WEATHER}
FORCED: Any = {"type": "function", "function": {"name": "get_weather"}}
# What the clients of OpenAI's own models send beside.
BESIDE: Any = {
    "store": False,
    "metadata": {"a": "b"},
    "user": "somebody",
    "prompt_cache_key": "k",
    "reasoning_effort": "none",
    "service_tier": "auto",
}


class Opinion(pydantic.BaseModel):
    sentiment: Literal["good", "bad"]
    stars: int = pydantic.Field(ge=1, le=5)


with check("models"):
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).object == "model"

with check("completion"):
    whole = client.completions.create(
        model=MODEL,
        prompt=["One", "Two"],
        max_tokens=5,
        logprobs=2,
        seed=1,
        n=2,
        echo=True,
    )
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert whole.choices[0].text.startswith("One")
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 20
    assert whole.choices[0].logprobs.text_offset[0] == 0

with check("completion stream"):
    pieces = list(
        client.completions.create(
            model=MODEL,
            prompt="Once upon a time",
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
    )
    assert pieces[-1].usage.completion_tokens == 8
    assert pieces[-1].choices == []

with check("chat"):
    answer = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        max_completion_tokens=8,
        temperature=0,
        logprobs=True,
        top_logprobs=3,
        **BESIDE,
    )
    assert answer.choices[0].message.role == "assistant"
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 3
    assert answer.object == "chat.completion"

with check("chat stream"):
    stream = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=8, stream=True
    )
    chunks = [chunk for chunk in stream if chunk.choices]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")

with check("forced tool, and its result"):
    asked: Any = {
        "model": MODEL,
        "messages": MESSAGES,
        "tools": [TOOL],
        "max_tokens": 100,
    }
    answer = client.chat.completions.create(**asked, tool_choice=FORCED, temperature=0)
    [call] = answer.choices[0].message.tool_calls
    assert set(json.loads(call.function.arguments)) == {"city", "unit"}
    history = [
        *MESSAGES,
        answer.choices[0].message,
        {"role": "tool", "tool_call_id": call.id, "content": "12 degrees"},
    ]
    after = client.chat.completions.create(
        model=MODEL, messages=history, tools=[TOOL], max_tokens=20
    )
    assert after.choices[0].finish_reason in ("stop", "length", "tool_calls")

with (
    check("forced tool, streamed"),
    client.chat.completions.stream(
        **asked, tool_choice="required", temperature=0
    ) as events,
):
    [call, *_] = events.get_final_completion().choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    json.loads(call.function.arguments)

with check("schema"):
    parsed = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "The film was great. Rate it as JSON."}],
        response_format=Opinion,
        max_tokens=80,
    )
    assert isinstance(parsed.choices[0].message.parsed, Opinion)

with check("responses"):
    reply = client.responses.create(model=MODEL, input=QUESTION, max_output_tokens=16)
    assert reply.object == "response"
    assert reply.usage.output_tokens > 0
    forced = client.responses.create(
        model=MODEL,
        instructions="Use the tool.",
        input=[{"role": "user", "content": QUESTION}],
        tools=[RESPONSES_TOOL],
        tool_choice={"type": "function", "name": "get_weather"},
        max_output_tokens=100,
    )
    [item] = [item for item in forced.output if item.type == "function_call"]
    assert set(json.loads(item.arguments)) == {"city", "unit"}
    counted = client.responses.input_tokens.count(model=MODEL, input=QUESTION)
    assert counted.input_tokens == reply.usage.input_tokens
    rated = client.responses.parse(
        model=MODEL,
        input="Rate the film as JSON.",
        text_format=Opinion,
        max_output_tokens=80,
    )
    assert isinstance(rated.output_parsed, Opinion)

with (
    check("responses stream"),
    client.responses.stream(
        model=MODEL, input=QUESTION, max_output_tokens=200, temperature=0
    ) as events,
):
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert events.get_final_response().output_text

with check("errors are its classes"):
    for wrong, kind in (
        ({"temperature": -1}, openai.BadRequestError),
        ({"model": "other"}, openai.NotFoundError),
        ({"messages": []}, openai.BadRequestError),
    ):
        fields: Any = {"model": MODEL, "messages": MESSAGES, **wrong}
        error = error_of(functools.partial(client.chat.completions.create, **fields))
        assert isinstance(error, kind), error
        assert error.param == next(iter(wrong)), error.param

end()
