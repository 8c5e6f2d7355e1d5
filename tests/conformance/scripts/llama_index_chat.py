"""llama-index: chats, completions, streams, tools, structured output."""

from typing import Literal

import pydantic
from checks import MODEL, QUESTION, URL, check, end
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike


def model(**more: object) -> OpenAILike:
    return OpenAILike(
        model=MODEL,
        api_base=f"{URL}/v1",
        api_key="none",
        context_window=8192,
        max_tokens=60,
        **more,
    )


class Opinion(pydantic.BaseModel):
    """What somebody thinks of a film."""

    sentiment: Literal["good", "bad"]


def get_weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    return f"12 degrees in {city}"


chat = model(is_chat_model=True, is_function_calling_model=True)

with check("chat"):
    assert chat.chat([ChatMessage(role="user", content=QUESTION)]).message.content

with check("chat stream"):
    pieces = list(chat.stream_chat([ChatMessage(role="user", content=QUESTION)]))
    assert pieces[-1].message.content

with check("completion"):
    plain = model(is_chat_model=False)
    assert plain.complete("Once upon a time").text
    assert list(plain.stream_complete("Once upon a time"))[-1].text

with check("log-probabilities"):
    told = model(is_chat_model=True, logprobs=True, top_logprobs=0)
    assert told.chat([ChatMessage(role="user", content=QUESTION)]).message.content

with check("forced tool"):
    tool = FunctionTool.from_defaults(get_weather)
    answer = chat.chat_with_tools([tool], user_msg=QUESTION, tool_required=True)
    [call, *_] = chat.get_tool_calls_from_response(answer)
    assert call.tool_kwargs["city"] in ("Paris", "Rome")

with check("structured output"):
    template = PromptTemplate("The film was {what}. Rate it.")
    opinion = chat.structured_predict(
        Opinion, template, llm_kwargs={"tool_choice": "required"}, what="great"
    )
    assert isinstance(opinion, Opinion)

with check("structured output by a schema"):
    by_schema = model(is_chat_model=True, should_use_structured_outputs=True)
    opinion = by_schema.structured_predict(Opinion, template, what="great")
    assert isinstance(opinion, Opinion)

end()
