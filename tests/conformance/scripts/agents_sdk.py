"""OpenAI's Agents SDK: runs and streamed runs with a forced tool, over responses and chats."""

from __future__ import annotations

import asyncio
from typing import Literal

import agents
import pydantic
from agents import Agent, ModelSettings, Runner, function_tool
from checks import MODEL, QUESTION, URL, check, end
from openai import AsyncOpenAI

agents.set_tracing_disabled(True)
client = AsyncOpenAI(base_url=f"{URL}/v1", api_key="none")
MODELS = {
    "responses": agents.OpenAIResponsesModel(MODEL, client),
    "chats": agents.OpenAIChatCompletionsModel(MODEL, client),
}


class Opinion(pydantic.BaseModel):
    sentiment: Literal["good", "bad"]


@function_tool
def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    return f"12 degrees in {city}"


def agent(model: agents.Model) -> Agent:
    return Agent(
        name="reporter",
        instructions="Use the tool.",
        tools=[get_weather],
        model=model,
        model_settings=ModelSettings(
            tool_choice="required", max_tokens=400, temperature=0.0
        ),
    )


async def run(model: agents.Model) -> None:
    result = await Runner.run(agent(model), QUESTION)
    kinds = [item.type for item in result.new_items]
    assert kinds[:2] == ["tool_call_item", "tool_call_output_item"], kinds
    history = [*result.to_input_list(), {"role": "user", "content": "And tomorrow?"}]
    assert (await Runner.run(agent(model), history)).new_items


async def stream(model: agents.Model) -> None:
    result = Runner.run_streamed(agent(model), QUESTION)
    names = [
        event.name async for event in result.stream_events() if hasattr(event, "name")
    ]
    assert {"tool_called", "tool_output"} <= set(names), names


async def rate(model: agents.Model) -> None:
    critic = Agent(
        name="critic",
        model=model,
        output_type=Opinion,
        model_settings=ModelSettings(max_tokens=60),
    )
    result = await Runner.run(critic, "The film was great.")
    assert isinstance(result.final_output, Opinion)


async def everything() -> None:
    for name, model in MODELS.items():
        with check(f"run with a tool, {name}"):
            await run(model)
        with check(f"streamed run with a tool, {name}"):
            await stream(model)
        with check(f"output type, {name}"):
            await rate(model)


asyncio.run(everything())
end()
