"""What a model thinks is told apart from what it answers, in all dialects."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.server import Server
from deployments.text import Text
from deployments.text_sources import toy_text
from deployments.thoughts import Marks, ThoughtReader, marks_of
from medha_actors.config import MedhaConfig
from tests.fakes import FakeEngine, saying
from tests.serve.conftest import EOS, MODEL, listening

MARKS = Marks("<think>", "</think>")
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
TOOL = {"type": "function", "function": {"name": "clock"}}
CALL = '{"name": "clock", "arguments": {"zone": 1}}'
# It writes the opening mark itself unless it is told not to think.
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content.split('</think>')[-1] }}\n"
    "{% endfor %}assistant: {% if enable_thinking is defined and not enable_thinking %}"
    "<think></think>{% else %}<think>\n{% endif %}"
)


def read(text: str, inside: bool = False, step: int = 1) -> tuple[str, str]:
    reader = ThoughtReader(MARKS, inside)
    told = [reader.push(text[i : i + step]) for i in range(0, len(text), step)]
    told.append(reader.finish())
    return "".join(one.thoughts for one in told), "".join(one.content for one in told)


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "inside", "thoughts", "content"),
    [
        ("<think>hm</think>so", False, "hm", "so"),
        ("\n<think>\nhm\n</think>\n\nso\n", False, "hm\n", "so\n"),
        ("hm</think>so", True, "hm", "so"),
        ("a < b, a <th </thin> c", True, "a < b, a <th </thin> c", ""),
        ("hm</thi", True, "hm</thi", ""),
        ("so", False, "", "so"),
        (" so <think>no</think>", False, "", " so <think>no</think>"),
        ("<thin", False, "", "<thin"),
        ("<think></think>so", False, "", "so"),
        ("<think>hm</think>so</think>", False, "hm", "so</think>"),
        ("", True, "", ""),
    ],
)
def test_reading(
    text: str, inside: bool, thoughts: str, content: str, step: int
) -> None:
    assert read(text, inside, step) == (thoughts, content)


@given(
    parts=st.lists(
        st.sampled_from(["<think>", "</think>", "<th", "ink>", "</", " ", "\n", "a"])
    ),
    inside=st.booleans(),
    step=st.integers(1, 9),
)
def test_it_does_not_matter_how_the_text_comes(
    parts: list[str], inside: bool, step: int
) -> None:
    text = "".join(parts)
    assert read(text, inside, step) == read(text, inside, len(text) + 1)


def test_marks_are_those_of_the_model(toy: Text) -> None:
    assert marks_of(toy) is None
    assert marks_of(Text(toy.tokenizer, chat_template=TEMPLATE)) == MARKS


@pytest.fixture
async def thinker(toy: Text):
    """A server whose model thinks; its engine says what `says` is set to."""
    text = Text(
        toy.tokenizer, chat_template=TEMPLATE, eos_token_ids=(EOS,), context_tokens=4096
    )
    engine = FakeEngine(saying(b"hm</think>\n\nso", EOS))
    server = Server(MedhaConfig(model_loading_config=MODEL), engine, text)
    async with listening(server.asgi()) as url, httpx.AsyncClient(base_url=url) as http:
        yield engine, http


@pytest.fixture
async def magistral():
    """A server whose model's marks are special tokens, as Mistral's are; the engine, an HTTP
    client, and the ids of the marks."""
    tokenizer = toy_text(512, 4096).tokenizer
    tokenizer.add_special_tokens(["[THINK]", "[/THINK]"])
    ids = [tokenizer.token_to_id(mark) for mark in ("[THINK]", "[/THINK]")]
    template = (
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
        "{% if open is defined and open %}[THINK]{% endif %}"
    )
    text = Text(
        tokenizer, chat_template=template, eos_token_ids=(EOS,), context_tokens=4096
    )
    engine = FakeEngine(saying([]))
    server = Server(MedhaConfig(model_loading_config=MODEL), engine, text)
    async with listening(server.asgi()) as url, httpx.AsyncClient(base_url=url) as http:
        yield engine, http, ids


def data_of(answer: httpx.Response) -> list[dict[str, Any]]:
    lines = [line for line in answer.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def test_a_chat(thinker) -> None:
    _, http = thinker
    answer = (await http.post("/v1/chat/completions", json=CHAT)).json()
    message = answer["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "so", "reasoning_content": "hm"}
    chunks = data_of(
        await http.post("/v1/chat/completions", json={**CHAT, "stream": True})
    )
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm"
    assert "".join(delta.get("content", "") for delta in deltas) == "so"
    assert deltas[0] == {"role": "assistant", "reasoning_content": "h"}


async def test_one_that_is_told_not_to_think(thinker) -> None:
    engine, http = thinker
    engine.script = saying(b"so", EOS)
    for asked in (
        {"reasoning_effort": "none"},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ):
        answer = (
            await http.post("/v1/chat/completions", json={**CHAT, **asked})
        ).json()
        message = answer["choices"][0]["message"]
        assert message == {"role": "assistant", "content": "so"}


async def test_calls_come_after_thoughts(thinker) -> None:
    engine, http = thinker
    engine.script = saying(f"a {CALL}?</think>\n{CALL}".encode(), EOS)
    answer = (
        await http.post("/v1/chat/completions", json={**CHAT, "tools": [TOOL]})
    ).json()
    message = answer["choices"][0]["message"]
    assert message["reasoning_content"] == f"a {CALL}?"
    [call] = message["tool_calls"]
    assert call["function"] == {"name": "clock", "arguments": '{"zone": 1}'}
    streamed = {**CHAT, "tools": [TOOL], "stream": True}
    chunks = data_of(await http.post("/v1/chat/completions", json=streamed))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    thoughts = "".join(delta.get("reasoning_content", "") for delta in deltas)
    calls = chain.from_iterable(delta.get("tool_calls", []) for delta in deltas)
    assert thoughts == f"a {CALL}?"
    assert "".join(call["function"]["arguments"] for call in calls) == '{"zone": 1}'


async def test_a_grammar_leaves_no_room_for_thoughts(thinker) -> None:
    engine, http = thinker
    engine.script = saying(b'{"a": 1}', EOS)
    body = {**CHAT, "response_format": {"type": "json_object"}}
    answer = (await http.post("/v1/chat/completions", json=body)).json()
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": '{"a": 1}',
    }


async def test_responses(thinker) -> None:
    _, http = thinker
    answer = (await http.post("/v1/responses", json={"input": "hi"})).json()
    reasoning, message = answer["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "hm"}]
    assert (reasoning["type"], message["content"][0]["text"]) == ("reasoning", "so")
    events = data_of(
        await http.post("/v1/responses", json={"input": "hi", "stream": True})
    )
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[2:9] == [
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
    ]
    assert events[-1]["response"]["output"][1]["content"][0]["text"] == "so"


async def test_messages(thinker) -> None:
    _, http = thinker
    body = {**CHAT, "max_tokens": 100}
    answer = (await http.post("/v1/messages", json=body)).json()
    assert answer["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "so"},
    ]
    events = data_of(await http.post("/v1/messages", json={**body, "stream": True}))
    deltas = [
        event["delta"] for event in events if event["type"] == "content_block_delta"
    ]
    assert deltas == [
        {"type": "thinking_delta", "thinking": "h"},
        {"type": "thinking_delta", "thinking": "m"},
        {"type": "text_delta", "text": "s"},
        {"type": "text_delta", "text": "o"},
    ]


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("opened", [True, False])
async def test_marks_that_are_special_tokens(
    magistral, skip: bool, opened: bool
) -> None:
    engine, http, (opening, closing) = magistral
    begun = [] if opened else [10, opening]
    engine.script = saying([*begun, *b"hm", closing, *b"\n\nso"], EOS)
    asked = {"skip_special_tokens": skip, "chat_template_kwargs": {"open": opened}}
    answer = (await http.post("/v1/chat/completions", json={**CHAT, **asked})).json()
    message = answer["choices"][0]["message"]
    assert message["reasoning_content"] == "hm"
    assert message["content"] == "so"
    streamed = {**CHAT, **asked, "stream": True}
    chunks = data_of(await http.post("/v1/chat/completions", json=streamed))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "hm"


async def test_special_tokens_elsewhere_are_no_marks(magistral) -> None:
    engine, http, (opening, closing) = magistral
    for tokens, thoughts in (
        ([closing, *b"so", opening, *b"."], None),
        ([opening, *b"hm", opening, closing, *b"so", closing, *b"."], "hm"),
    ):
        engine.script = saying(tokens, EOS)
        answer = (await http.post("/v1/chat/completions", json=CHAT)).json()
        message = answer["choices"][0]["message"]
        assert message["content"] == "so."
        assert message.get("reasoning_content") == thoughts


async def test_special_marks_in_the_other_dialects(magistral) -> None:
    engine, http, (opening, closing) = magistral
    engine.script = saying([opening, *b"hm", closing, *b"so"], EOS)
    body = {**CHAT, "max_tokens": 100}
    answer = (await http.post("/v1/messages", json=body)).json()
    assert [block["type"] for block in answer["content"]] == ["thinking", "text"]
    reply = (await http.post("/v1/responses", json={"input": "hi"})).json()
    assert [item["type"] for item in reply["output"]] == ["reasoning", "message"]
