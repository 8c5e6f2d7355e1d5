"""inspect-ai: a task over chats with a schema, a forced tool, and an answer begun for the model."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from checks import LONG, MODEL, QUESTION, URL, WEATHER, check, end

os.environ["INSPECT_LOG_DIR"] = str(Path.cwd() / "logs")
os.environ["MEDHA_API_KEY"] = "none"
os.environ["MEDHA_BASE_URL"] = f"{URL}/v1"
os.environ["VLLM_API_KEY"] = "none"

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageUser,
    GenerateConfig,
    ResponseSchema,
    get_model,
)
from inspect_ai.scorer import includes
from inspect_ai.tool import ToolFunction, ToolInfo, ToolParams
from inspect_ai.util import json_schema
from pydantic import BaseModel

NAME = f"openai-api/medha/{MODEL}"


class City(BaseModel):
    name: str  # this tool sends no lengths: a long answer is cut off, so the draw is fixed below


with check("task"):
    [log] = eval(
        Task(dataset=[Sample(input=QUESTION, target="e")], scorer=includes()),
        model=NAME,
        max_tokens=8,
        temperature=0,
        seed=1,
        display="none",
    )
    assert log.status == "success", log.error


async def ask() -> None:
    async with get_model(NAME) as model:
        with check("forced tool"):
            info = ToolInfo(
                name="get_weather",
                description="The weather.",
                parameters=ToolParams.model_validate(
                    {key: WEATHER[key] for key in ("type", "properties", "required")}
                ),
            )
            output = await model.generate(
                QUESTION,
                tools=[info],
                tool_choice=ToolFunction("get_weather"),
                config=GenerateConfig(max_tokens=100),
            )
            [call] = output.message.tool_calls
            assert set(call.arguments) == {"city", "unit"}, call
        with check("schema"):
            wanted = ResponseSchema(
                name="city", json_schema=json_schema(City), strict=True
            )
            config = GenerateConfig(
                max_tokens=80, response_schema=wanted, temperature=0
            )
            output = await model.generate("Name a city as JSON.", config=config)
            City.model_validate_json(output.completion)
        with check("log-probabilities"):
            config = GenerateConfig(max_tokens=5, logprobs=True, top_logprobs=3)
            output = await model.generate(QUESTION, config=config)
            assert len(output.choices[0].logprobs.content[0].top_logprobs) == 3
    async with get_model(
        f"vllm/{MODEL}", base_url=f"{URL}/v1", api_key="none"
    ) as model:
        with check("as vLLM, with the answer's beginning given"):
            turns = [
                ChatMessageUser(content=QUESTION),
                ChatMessageAssistant(content="It is"),
            ]
            output = await model.generate(turns, config=GenerateConfig(max_tokens=8))
            assert output.completion
        with check("as vLLM, a prompt that does not fit"):
            output = await model.generate(LONG, config=GenerateConfig(max_tokens=8))
            assert output.stop_reason == "model_length", output.stop_reason


asyncio.run(ask())
end()
