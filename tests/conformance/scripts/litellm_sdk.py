"""litellm's SDK: chats, streams, tools, schemas, completions, cached parts."""

from __future__ import annotations

import functools
import json
import os
from typing import Any

# it would ask the network for prices
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm
import pydantic
from checks import LONG, MODEL, QUESTION, URL, WEATHER, check, end, error_of

ASKED: Any = {"model": f"openai/{MODEL}", "api_base": f"{URL}/v1", "api_key": "none"}
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
TOOL: Any = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": WEATHER},
}
CACHED: Any = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}
        ],
    }
]


class City(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=20)


with check("chat"):
    answer = litellm.completion(**ASKED, messages=MESSAGES, max_tokens=8, temperature=0)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0

with check("chat stream"):
    stream = litellm.completion(
        **ASKED,
        messages=MESSAGES,
        max_tokens=8,
        stream=True,
        stream_options={"include_usage": True},
    )
    pieces = list(stream)
    assert "".join(
        piece.choices[0].delta.content or "" for piece in pieces if piece.choices
    )

with check("cached parts"):
    assert litellm.completion(**ASKED, messages=CACHED, max_tokens=8).choices

with check("forced tool"):
    answer = litellm.completion(
        **ASKED, messages=MESSAGES, tools=[TOOL], tool_choice="required", max_tokens=100
    )
    [call, *_] = answer.choices[0].message.tool_calls
    assert set(json.loads(call.function.arguments)) == {"city", "unit"}

with check("schema"):
    answer = litellm.completion(
        **ASKED, messages=MESSAGES, response_format=City, max_tokens=80, temperature=0
    )
    City.model_validate_json(answer.choices[0].message.content)

with check("completion"):
    answer = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}",
        api_base=f"{URL}/v1",
        api_key="none",
        prompt="Once upon a time",
        max_tokens=8,
    )
    assert answer.choices[0].text

with check("messages, as a client of Anthropic's"):
    answer = litellm.completion(
        model=f"anthropic/{MODEL}",
        api_base=URL,
        api_key="none",
        messages=MESSAGES,
        max_tokens=8,
    )
    assert answer.choices[0].message.content

with check("responses"):
    answer = litellm.responses(**ASKED, input=QUESTION, max_output_tokens=16)
    assert answer.output

with check("errors are its classes"):
    wrong: Any = {**ASKED, "messages": MESSAGES, "temperature": -1, "num_retries": 0}
    error = error_of(lambda: litellm.completion(**wrong))
    assert isinstance(error, litellm.BadRequestError), error

for provider, base in ((f"openai/{MODEL}", f"{URL}/v1"), (f"anthropic/{MODEL}", URL)):
    with check(f"a prompt that does not fit, {provider.partition('/')[0]}"):
        long: Any = {
            "model": provider,
            "api_base": base,
            "api_key": "none",
            "max_tokens": 8,
        }
        told = [{"role": "user", "content": LONG}]
        error = error_of(functools.partial(litellm.completion, **long, messages=told))
        assert isinstance(error, litellm.ContextWindowExceededError), type(
            error
        ).__name__

end()
