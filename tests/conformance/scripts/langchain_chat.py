"""langchain: chats, streams, batches, structured output by each method, tools, completions."""

from __future__ import annotations

import asyncio
from typing import Literal

import pydantic
from checks import LONG, MODEL, QUESTION, URL, check, end, error_of
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI

chat = ChatOpenAI(model=MODEL, base_url=f"{URL}/v1", api_key="none", max_tokens=100)
RATE = 'The film was great. Rate it as JSON, like {"stars": 5}.'


class Opinion(pydantic.BaseModel):
    """What somebody thinks of a film."""

    sentiment: Literal["good", "bad"]
    stars: int = pydantic.Field(ge=1, le=5)


@tool
def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    return f"12 degrees in {city}"


with check("chat"):
    answer = chat.invoke([SystemMessage("Be brief."), HumanMessage(QUESTION)])
    assert answer.usage_metadata["output_tokens"] > 0
    assert answer.response_metadata["finish_reason"] in ("stop", "length")

with check("stream"):
    pieces = list(chat.stream(QUESTION))
    assert "".join(str(piece.content) for piece in pieces)

with check("batch"):
    assert len(chat.batch(["One", "Two"])) == 2

with check("asynchronous"):
    assert asyncio.run(chat.ainvoke("One")).content

for method in ("json_schema", "function_calling", "json_mode"):
    with check(f"with_structured_output, {method}"):
        shape = None if method == "json_mode" else Opinion
        calm = chat.model_copy(update={"temperature": 0.0})
        structured = calm.with_structured_output(shape, method=method)
        value = structured.invoke(RATE)
        assert isinstance(value, Opinion if shape else dict), value

with check("with_structured_output, strict and with what was said"):
    told = chat.with_structured_output(Opinion, strict=True, include_raw=True).invoke(
        RATE
    )
    assert isinstance(told["parsed"], Opinion)
    assert told["parsing_error"] is None

with check("bind_tools, forced, and its result"):
    forced = chat.bind_tools([get_weather], tool_choice="get_weather").invoke(QUESTION)
    assert isinstance(forced, AIMessage)
    [call] = forced.tool_calls
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage)
    after = chat.bind_tools([get_weather]).invoke(
        [HumanMessage(QUESTION), forced, result]
    )
    assert after.content or after.tool_calls

with check("bind_tools, any and streamed"):
    bound = chat.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
    whole = None
    for piece in bound.stream(QUESTION):
        whole = piece if whole is None else whole + piece
    assert whole.tool_calls[0]["args"]["city"] in ("Paris", "Rome")

with check("completions"):
    model = OpenAI(model=MODEL, base_url=f"{URL}/v1", api_key="none", max_tokens=8)
    assert model.invoke("Once upon a time")
    assert list(model.stream("Once upon a time"))

with check("responses"):
    newer = ChatOpenAI(
        model=MODEL,
        base_url=f"{URL}/v1",
        api_key="none",
        max_tokens=16,
        use_responses_api=True,
    )
    assert newer.invoke(QUESTION).content
    assert list(newer.stream(QUESTION))

with check("a prompt that does not fit"):
    error = error_of(lambda: chat.invoke(LONG))
    assert isinstance(error, ContextOverflowError), type(error).__name__

end()
