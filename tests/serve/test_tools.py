"""Tools over real HTTP, and with OpenAI's own client."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import httpx
import openai
import pydantic
import pytest

from deployments.server import Server
from deployments.text import Text
from deployments.text_sources import toy_text
from medha_actors.config import MedhaConfig, ModelLoadingConfig
from medha_actors.files.vocabulary import load_vocabulary
from medha_actors.messages import unpack_tokens
from medha_actors.model.matchers import Matchers
from tests.fakes import FakeEngine, saying
from tests.serve.conftest import EOS, MODEL, listening
from tests.serve.test_generation import frames

MESSAGES = [{"role": "user", "content": "weather in Rome?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "today's", "parameters": PARAMETERS},
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
ROME = '{"name": "weather", "arguments": {"city": "Rome"}}'
BOTH = f'[{ROME}, {{"name": "clock", "arguments": {{}}}}]'
HERMES = (
    "{% if tools %}{{ tools | tojson }} in <tool_call>{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
)


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": MESSAGES, "tools": [WEATHER, CLOCK], **fields}


def prompt_of(engine: FakeEngine) -> str:
    return bytes(unpack_tokens(engine.requests[-1].prompt_token_ids)).decode()


@pytest.fixture
async def hermes(toy: Text):
    """A server whose model's template knows tools; its engine and an HTTP client."""
    text = Text(
        toy.tokenizer, chat_template=HERMES, eos_token_ids=(EOS,), context_tokens=4096
    )
    engine = FakeEngine(saying(f"<tool_call>\n{ROME}\n</tool_call>".encode(), EOS))
    server = Server(MedhaConfig(model_loading_config=MODEL), engine, text)
    async with listening(server.asgi()) as url, httpx.AsyncClient(base_url=url) as http:
        yield engine, http


async def test_a_call(start) -> None:
    service = await start(saying(ROME.encode(), EOS))
    answer = (await service.post("/v1/chat/completions", chat())).json()
    [choice] = answer["choices"]
    [call] = choice["message"]["tool_calls"]
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"
    assert (call["type"], call["id"][:5]) == ("function", "call_")
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}
    assert service.engine.requests[0].sampling.grammar is None
    prompt = prompt_of(service.engine)  # the toy's template knows no tools
    assert prompt.startswith("system: You can call these tools:\n")
    assert '"description": "today\'s"' in prompt
    assert prompt.endswith("user: weather in Rome?\nassistant: ")


async def test_a_template_that_knows_tools(hermes) -> None:
    engine, http = hermes
    system = [{"role": "system", "content": "be kind"}, *MESSAGES]
    answer = (
        await http.post("/v1/chat/completions", json=chat(messages=system))
    ).json()
    assert (
        answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"]
        == "weather"
    )
    first, _, rest = prompt_of(engine).partition(" in <tool_call>")
    told = [{**WEATHER}, {**CLOCK}]
    told[1] = {"type": "function", "function": {"name": "clock", "parameters": {
        "type": "object", "properties": {}}}}  # fmt: skip
    assert json.loads(first) == told
    assert rest == "system: be kind\nuser: weather in Rome?\n"
    await http.post("/v1/chat/completions", json=chat(tool_choice="none"))
    assert prompt_of(engine) == "user: weather in Rome?\n"


async def test_a_stream(start) -> None:
    service = await start(saying(BOTH.encode(), EOS))
    response = await service.post("/v1/chat/completions", chat(stream=True))
    *events, done = frames(response.text)
    assert done == "[DONE]"
    deltas = [event["choices"][0]["delta"] for event in events]
    assert len(deltas) == len(BOTH) + 1  # one event per token
    assert deltas[0]["role"] == "assistant"
    calls: dict[int, dict[str, str]] = {}
    for delta in deltas:
        assert "content" not in delta
        for call in delta.get("tool_calls", []):
            if "id" in call:
                assert call["type"] == "function"
                calls[call["index"]] = {
                    "name": call["function"]["name"],
                    "arguments": "",
                }
            calls[call["index"]]["arguments"] += call["function"]["arguments"]
    assert calls == {
        0: {"name": "weather", "arguments": '{"city": "Rome"}'},
        1: {"name": "clock", "arguments": "{}"},
    }
    pieces = [
        d["tool_calls"][0]["function"]["arguments"] for d in deltas if "tool_calls" in d
    ]
    assert pieces[:4] == ["", "{", '"', "c"]
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("said", "most", "reason"),
    [("Hello world", 50, "stop"), ('{"a": 1}', 50, "stop"), (ROME[:40], 40, "length")],
)
async def test_no_call_or_half_of_one(
    start, stream: bool, said: str, most: int, reason
) -> None:
    service = await start(saying(said.encode(), EOS))
    response = await service.post(
        "/v1/chat/completions", chat(stream=stream, max_tokens=most)
    )
    if stream:
        choices = [event["choices"][0] for event in frames(response.text)[:-1]]
        content = "".join(choice["delta"].get("content", "") for choice in choices)
    else:
        choices = response.json()["choices"]
        content = choices[0]["message"]["content"] or ""
    assert choices[-1]["finish_reason"] == reason
    assert content == ("" if reason == "length" else said)


@pytest.mark.parametrize(
    ("fields", "right", "wrong"),
    [
        ({"tool_choice": "required"}, BOTH, "no"),
        ({"tool_choice": "required", "parallel_tool_calls": False}, ROME, "["),
        (
            {"tool_choice": {"type": "function", "function": {"name": "clock"}}},
            '{"name": "clock", "arguments": {}}',
            '{"name": "w',
        ),
    ],
)
async def test_forced(start, fields, right: str, wrong: str) -> None:
    service = await start(saying(right.encode(), EOS))
    answer = (await service.post("/v1/chat/completions", chat(**fields, n=2))).json()
    calls = [choice["message"]["tool_calls"] for choice in answer["choices"]]
    names = [call["id"] for call in chain.from_iterable(calls)]
    assert len(set(names)) == len(names)
    first, second = service.engine.requests
    grammar = first.sampling.grammar
    assert second.sampling.grammar == grammar
    matchers = Matchers(
        lambda: load_vocabulary(ModelLoadingConfig(model_source="random")), 512
    )
    matcher = matchers.matcher(grammar)
    assert matcher.try_consume_tokens(list(right.encode())) == len(right)
    assert matcher.is_accepting()
    assert matchers.matcher(grammar).try_consume_tokens(list(wrong.encode())) < len(
        wrong
    )


async def test_markers_that_are_control_tokens(toy: Text) -> None:
    """Mistral's: not text in the grammar, and hidden from answers without tools."""
    base = toy_text(512, 4096)
    base.tokenizer.add_special_tokens(["[TOOL_CALLS]"])
    marker = base.tokenizer.token_to_id("[TOOL_CALLS]")
    template = "{% if tools %}[TOOL_CALLS]{% endif %}hi"
    text = Text(
        base.tokenizer,
        chat_template=template,
        eos_token_ids=(EOS,),
        context_tokens=4096,
    )
    engine = FakeEngine(saying([marker, *f"[{ROME}]".encode()], EOS))
    server = Server(MedhaConfig(model_loading_config=MODEL), engine, text)
    async with listening(server.asgi()) as url, httpx.AsyncClient(base_url=url) as http:
        body = chat(tool_choice="required")
        response = await http.post("/v1/chat/completions", json=body)
        [choice] = response.json()["choices"]
        assert len(choice["message"]["tool_calls"][0]["id"]) == 9
        grammar = engine.requests[0].sampling.grammar
        assert grammar.text.startswith(f"start: <[{marker}]> ")
        plain = await http.post("/v1/chat/completions", json={"messages": MESSAGES})
        assert plain.json()["choices"][0]["message"]["content"] == f"[{ROME}]"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "mcp", "function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"function": {"name": ""}}]}, "tools[0].function.name"),
        (
            {"tools": [{"function": {"name": "f", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [CLOCK, CLOCK]}, "tools"),
        ({"tools": [{"function": {"name": f"f{i}"}} for i in range(129)]}, "tools"),
        ({"tool_choice": "some"}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "h"}}},
            "tool_choice",
        ),
        (
            {"tool_choice": "required", "response_format": {"type": "json_object"}},
            "response_format",
        ),
        (
            {
                "tools": [{"function": {"name": "f", "parameters": {"type": "x"}}}],
                "tool_choice": "required",
            },
            "tools",
        ),
        (
            {
                "tools": [
                    {
                        "function": {
                            "name": "f",
                            "strict": True,
                            "parameters": {"not": {}},
                        }
                    }
                ],
                "tool_choice": "required",
            },
            "tools",
        ),
    ],
)
async def test_what_is_refused(start, fields, param: str) -> None:
    service = await start()
    response = await service.post("/v1/chat/completions", chat(**fields))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param), error
    assert service.engine.requests == []


async def test_a_cut_stream_goes_on_with_the_same_call(start) -> None:
    service = await start(saying(ROME.encode(), EOS))
    ids = {"x-medha-event-ids": "1"}
    body = chat(stream=True, seed=1)
    whole = await service.post("/v1/chat/completions", body, headers=ids)
    answer_id = frames(whole.text)[0]["id"]
    resume = {"x-medha-resume": f"{answer_id}:25"}
    rest = await service.post("/v1/chat/completions", body, headers=resume)
    assert frames(rest.text) == frames(whole.text)[25:]


class Person(pydantic.BaseModel):
    name: str
    age: int


async def test_openai_client(start) -> None:
    service = await start(saying(ROME.encode(), EOS))
    client = openai.AsyncOpenAI(
        base_url=f"{service.url}/v1", api_key="none", max_retries=0
    )
    async with client:
        asked: Any = {"model": "toy", "messages": MESSAGES, "tools": [WEATHER, CLOCK]}
        answer = await client.chat.completions.create(**asked, tool_choice="required")
        [call] = answer.choices[0].message.tool_calls
        assert json.loads(call.function.arguments) == {"city": "Rome"}
        async with client.chat.completions.stream(**asked) as stream:
            final = await stream.get_final_completion()
        assert (
            final.choices[0].message.tool_calls[0].function.arguments
            == '{"city": "Rome"}'
        )
        service.engine.script = saying(b'{"name":"Ada","age":36}', EOS)
        parsed = await client.chat.completions.parse(
            model="toy", messages=MESSAGES, response_format=Person
        )
        assert parsed.choices[0].message.parsed == Person(name="Ada", age=36)
        async with client.chat.completions.stream(
            model="toy", messages=MESSAGES, response_format=Person
        ) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.parsed == Person(name="Ada", age=36)
        grammar = service.engine.requests[-1].sampling.grammar
        assert '"title":"Person"' in grammar.text
