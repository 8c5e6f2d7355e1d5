"""Calls in text: wherever it is cut, the same calls and the same content."""

from __future__ import annotations

import json
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.text_sources import toy_text
from deployments.tool_fields import Function, Tool
from deployments.tool_reader import ToolReader
from deployments.tool_styles import (
    HERMES,
    JSON,
    LLAMA3,
    MISTRAL,
    MISTRAL_ARGS,
    Style,
    forced_calls,
    style_of,
)
from medha_actors.config import ModelLoadingConfig
from medha_actors.files.vocabulary import load_vocabulary
from medha_actors.messages import Grammar
from medha_actors.model.matchers import Matchers

CASES: list[tuple[Style, str, str, list[tuple[str, str]]]] = [
    (
        HERMES,
        'I look.\n<tool_call>\n{"name": "f", "arguments": {"a": "}{\\"<tool_call>"}}\n</tool_call>'
        '\n<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>\n',
        "I look.",
        [("f", '{"a": "}{\\"<tool_call>"}'), ("g", "{}")],
    ),
    (HERMES, '<tool_call>{"arguments": {"x": [1]}, "name": "f"}</tool_call> done', " done",
     [("f", '{"x": [1]}')]),
    (HERMES, 'a <tool_call> no <tool_call>{"name":"f","arguments":"{\\"a\\":1}"}',
     "a <tool_call> no", [("f", '{"a":1}')]),
    (HERMES, '<tool_call>{"name":"z","arguments":{}}</tool_call>',
     '<tool_call>{"name":"z","arguments":{}}</tool_call>', []),
    (HERMES, "  plain < text <tool ", "  plain < text <tool ", []),
    (HERMES, '<tool_call>{"name":"f","arguments":{"a":', "", [("f", '{"a":')]),
    (HERMES, '<tool_call>{"name":"f"}<tool_call>{"name":"g","arguments":{"b":1}}</tool_call>', "",
     [("f", "{}"), ("g", '{"b":1}')]),
    (MISTRAL, '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]',
     "", [("f", '{"a": 1}'), ("g", "{}")]),
    (MISTRAL_ARGS, '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]12[ARGS]{"b": {"c": 2}}', "",
     [("f", '{"a": 1}'), ("g", '{"b": {"c": 2}}')]),
    (LLAMA3, '{"name": "f", "parameters": {"a": 1}}', "", [("f", '{"a": 1}')]),
    (LLAMA3, '{"type": "function", "name": "f", "parameters": {}}; {"name": "g", "parameters": {}}',
     "", [("f", "{}"), ("g", "{}")]),
    (LLAMA3, '{"answer": 5}', '{"answer": 5}', []),
    (LLAMA3, ' hello {"name": "f"}', ' hello {"name": "f"}', []),
    (JSON, '[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {"b": true}}]', "",
     [("f", '{"a": 1}'), ("g", '{"b": true}')]),
    (JSON, '\n {"name": "f", "arguments": null}', "", [("f", "{}")]),
    (JSON, '{"name": "f", "n": -1.5, "arguments": {}, "z":true}', "", [("f", "{}")]),
    (JSON, '{"name": "f", "arguments": {}} ok?', "ok?", [("f", "{}")]),
    (JSON, "[1,2]", "[1,2]", []),
    (JSON, '{"name": 5}', '{"name": 5}', []),
    (JSON, " \n", " \n", []),
]  # fmt: skip


def read(style: Style, parts: list[str], most: int | None = None):
    reader = ToolReader(style, frozenset("fg"), "answer", most)
    content = ""
    ids = set()
    calls: dict[int, list[str]] = {}
    for said in [*(reader.push(part) for part in parts), reader.finish()]:
        content += said.content
        for call in said.calls:
            if call.name is not None:
                assert call.index == len(calls)
                assert call.id
                calls[call.index] = [call.name, ""]
                ids.add(call.id)
            calls[call.index][1] += call.arguments
    assert len(ids) == len(calls) == reader.calls
    return content, [(name, arguments) for name, arguments in calls.values()]


@given(st.sampled_from(CASES), st.lists(st.integers(1, 9), max_size=80))
def test_wherever_it_is_cut(case, sizes: list[int]) -> None:
    style, text, content, calls = case
    parts = []
    at = 0
    for size in sizes:
        parts.append(text[at : at + size])
        at += size
    assert read(style, [*parts, text[at:]]) == (content, calls)


def test_arguments_come_as_they_grow() -> None:
    reader = ToolReader(HERMES, frozenset("f"), "answer")
    said = [
        reader.push(char) for char in '<tool_call>{"name": "f", "arguments": {"a": 12}}'
    ]
    calls = chain.from_iterable(one.calls for one in said)
    pieces = [call.arguments for call in calls]
    assert pieces == ["", "{", '"', "a", '"', ":", " ", "1", "2", "}"]


def test_one_call_at_most() -> None:
    style, text, _, calls = CASES[0]
    assert read(style, [text], most=1) == ("I look.", calls[:1])
    assert read(style, [text[:-30]], most=1) == ("I look.", calls[:1])


def test_ids_are_the_same_when_an_answer_is_resumed_and_as_mistral_wants_them() -> None:
    def first_id(style: Style, text: str, answer: str) -> str | None:
        return ToolReader(style, frozenset("f"), answer).push(text).calls[0].id

    text = '<tool_call>{"name": "f"'
    assert first_id(HERMES, text, "a") == first_id(HERMES, text, "a")
    assert first_id(HERMES, text, "a") != first_id(HERMES, text, "b")
    mistral = first_id(MISTRAL, '[TOOL_CALLS][{"name": "f"', "a")
    assert len(mistral) == 9
    assert mistral.isalnum()


@pytest.mark.parametrize(
    "text", ['<tool_call>{"a":"' * 3000, '<tool_call>{"name":"f","x":{' * 900]
)
def test_text_that_is_full_of_beginnings(text: str) -> None:
    content, calls = read(HERMES, [text])
    assert calls or content == text


@pytest.mark.parametrize(
    ("template", "style"),
    [
        (None, JSON._replace(by_template=False)),
        ("{{ messages }}", JSON._replace(by_template=False)),
        ("{% if tools %}<tool_call>{% endif %}", HERMES),
        ("{% if tools %}[AVAILABLE_TOOLS][TOOL_CALLS]{% endif %}", MISTRAL),
        ("{% if tools %}[TOOL_CALLS]x[ARGS]{% endif %}", MISTRAL_ARGS),
        ("{% if tools %}<|python_tag|>{% endif %}", LLAMA3),
        ("{% if tools %}{{ tools | tojson }}{% endif %}", JSON),
    ],
)
def test_styles_by_template(template: str | None, style: Style) -> None:
    assert style_of(template) == style
    assert toy_text(512).chat_template is not None


CITY = {
    "$defs": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    Tool(function=Function(name="f", parameters=CITY)),
    Tool(function=Function(name="g")),
]


@pytest.mark.parametrize(
    ("style", "answers"),
    [
        (
            HERMES,
            [
                '<tool_call>\n{"name": "f", "arguments": {"city": "Rome"}}\n</tool_call>',
                '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>\n'
                '<tool_call>\n{"name": "f", "arguments": {"city": "Oslo"}}\n</tool_call>',
            ],
        ),
        (
            MISTRAL,
            [
                '[TOOL_CALLS][{"name": "g", "arguments": {}}, {"name": "g", "arguments": {}}]'
            ],
        ),
        (MISTRAL_ARGS, ['[TOOL_CALLS]f[ARGS]{"city": "Rome"}[TOOL_CALLS]g[ARGS]{}']),
        (LLAMA3, ['{"name": "f", "parameters": {"city": "Rome"}}']),
        (
            JSON,
            [
                '{"name": "f", "arguments": {"city": "Rome"}}',
                '[{"name": "g", "arguments": {}}, {"name": "f", "arguments": {"city": "Oslo"}}]',
            ],
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Style) else "",
)
def test_forced_calls_are_read_as_calls(style: Style, answers: list[str]) -> None:
    matchers = Matchers(
        lambda: load_vocabulary(ModelLoadingConfig(model_source="random")), 512
    )
    text = forced_calls(style, TOOLS, True, json.dumps)
    for answer in answers:
        matcher = matchers.matcher(Grammar(text, (256,)))
        assert matcher.try_consume_tokens(list(answer.encode())) == len(answer)
        assert matcher.is_accepting()
        content, calls = read(style, [answer])
        assert content == ""
        assert calls
    for wrong in ("hello", '{"name": "h"', answers[0].replace("Rome", "Bonn")):
        matcher = matchers.matcher(Grammar(text, (256,)))
        taken = matcher.try_consume_tokens(list(wrong.encode()))
        assert taken < len(wrong) or wrong == answers[0]
    once = matchers.matcher(
        Grammar(forced_calls(style, TOOLS, False, json.dumps), (256,))
    )
    several = answers[-1]
    if len(read(style, [several])[1]) > 1:
        assert once.try_consume_tokens(list(several.encode())) < len(several)
