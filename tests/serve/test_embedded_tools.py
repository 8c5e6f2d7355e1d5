"""The embedded model behind the real HTTP server: forced tools and schemas, as users see them."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pydantic
import pytest

from deployments.server import Server
from deployments.text_sources import load_text
from medha_actors.config import MedhaConfig, ModelLoadingConfig
from medha_actors.messages import unpack_tokens
from tests.fakes import FakeEngine, finished, token
from tests.model.stage_driver import Driver
from tests.serve.conftest import listening

CHUNK = 64
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
CLOCK: Any = {
    "type": "function",
    "function": {"name": "get_time", "description": "The time."},
}
MESSAGES: Any = [
    {"role": "user", "content": "What is the weather in Paris, in celsius?"}
]


class Opinion(pydantic.BaseModel):
    sentiment: Literal["good", "bad"]
    stars: int = pydantic.Field(ge=1, le=5)


@pytest.fixture
async def client():
    config = ModelLoadingConfig()
    driver = Driver(config)

    async def computed(request):
        prompt = unpack_tokens(request.prompt_token_ids)
        sampling = request.sampling
        driver.add(request.id, prompt, sampling)
        mine = driver.requests[request.id]
        for index in range(sampling.max_tokens):
            driver.generate({request.id: index + 1}, CHUNK)
            assert not driver.failed
            yield token(request, index, mine.tokens[-1])
            if mine.tokens[-1] in sampling.stop_token_ids:
                break
        last = mine.tokens[-1]
        driver.remove(request.id)
        reason = "stop" if last in sampling.stop_token_ids else "length"
        yield finished(request, len(mine.tokens) - mine.prompt, reason)

    server = Server(
        MedhaConfig(model_loading_config=config),
        FakeEngine(computed),
        load_text(config),
    )
    async with (
        listening(server.asgi()) as url,
        openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0
        ) as client,
    ):
        yield client


async def test_a_forced_tool(client) -> None:
    asked: Any = {
        "model": "smollm2-135m-instruct",
        "messages": MESSAGES,
        "tools": [WEATHER, CLOCK],
        "temperature": 0,
        "max_tokens": 80,
    }
    answer = await client.chat.completions.create(**asked, tool_choice="required", n=1)
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    names = [call.function.name for call in choice.message.tool_calls]
    assert set(names) <= {"get_weather", "get_time"}
    named = {"type": "function", "function": {"name": "get_weather"}}
    async with client.chat.completions.stream(**asked, tool_choice=named) as stream:
        final = await stream.get_final_completion()
    [call] = final.choices[0].message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert arguments == {"city": "Paris", "unit": "celsius"}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_a_schema(client, temperature: float) -> None:
    answer = await client.chat.completions.parse(
        model="smollm2-135m-instruct",
        messages=[
            {"role": "user", "content": "The film was great fun. Rate it as JSON."}
        ],
        response_format=Opinion,
        temperature=temperature,
        seed=1,
        max_tokens=60,
        logprobs=True,
    )
    assert isinstance(answer.choices[0].message.parsed, Opinion)
    assert answer.choices[0].finish_reason == "stop"
    assert all(entry.logprob <= 0 for entry in answer.choices[0].logprobs.content)
