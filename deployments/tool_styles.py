"""How models of different families write calls of tools, told by their chat templates.

hermes   <tool_call>{"name": ..., "arguments": {...}}</tool_call>   (Hermes, Qwen)
mistral  [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...], or [TOOL_CALLS]name[ARGS]{...}
llama3   {"name": ..., "parameters": {...}}
json     {"name": ..., "arguments": {...}}, or a list of them: models that know no tools are told so
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from deployments.structure import json_text
from deployments.tool_fields import Tool


class Style(NamedTuple):
    """One family's way."""

    name: str
    opening: str = ""  # before calls; empty: an answer that calls is nothing else
    closing: str = ""  # after each call
    key: str = "arguments"
    # between a bare name and its arguments; empty: calls are JSON objects
    arguments_mark: str = ""
    listed: bool = False  # calls stand in a list
    # the template tells the model of the tools; else a system message does
    by_template: bool = True


HERMES: Final = Style("hermes", "<tool_call>", "</tool_call>")
MISTRAL: Final = Style("mistral", "[TOOL_CALLS]", listed=True)
MISTRAL_ARGS: Final = Style("mistral", "[TOOL_CALLS]", arguments_mark="[ARGS]")
LLAMA3: Final = Style("llama3", key="parameters")
JSON: Final = Style("json")


def style_of(template: str | None) -> Style:
    """The style of a model with this chat template."""
    source = template or ""
    if not re.search(r"\btools\b", source):
        return JSON._replace(by_template=False)
    if "[TOOL_CALLS]" in source:
        return MISTRAL_ARGS if "[ARGS]" in source else MISTRAL
    if "<tool_call>" in source:
        return HERMES
    return LLAMA3 if "python_tag" in source or '"parameters"' in source else JSON


Mark = Callable[
    [str], str
]  # a marker as a part of a grammar: a text, or a control token


def forced_calls(style: Style, tools: Sequence[Tool], several: bool, mark: Mark) -> str:
    """A grammar of answers that call one of these tools, or several times."""
    names = [f"call{i}" for i in range(len(tools))]
    rules = [
        _call(style, name, tool, mark) for name, tool in zip(names, tools, strict=True)
    ]
    rules.append("call: " + " | ".join(names))
    return "\n".join([f"start: {_answer(style, several, mark)}", *rules])


def _answer(style: Style, several: bool, mark: Mark) -> str:
    if style.closing:
        one = f'{mark(style.opening)} "\\n" call "\\n" {mark(style.closing)}'
        return f'{one} ("\\n" {one})*' if several else one
    if style.arguments_mark:
        one = f"{mark(style.opening)} call"
        return f"({one})+" if several else one
    more = '(", " call)*' if several else ""
    if style.listed:
        return f'{mark(style.opening)} "[" call {more} "]"'
    if several and style.key == "arguments":  # Llama 3 was trained to make one call
        return f'call | "[" call {more} "]"'
    return "call"


def _call(style: Style, rule: str, tool: Tool, mark: Mark) -> str:
    """Rules for one tool. Its schema is a JSON document of its own, as its references expect."""
    function = tool.function
    parameters = function.parameters
    if parameters is None:
        parameters = {"type": "object", "properties": {}, "additionalProperties": False}
    schema = json_text(parameters, lenient=not function.strict)
    name = json.dumps(function.name)
    if style.arguments_mark:
        body = f"{name} {mark(style.arguments_mark)} {rule}args"
    else:
        head = json.dumps(f'{{"name": {name}, "{style.key}": ')
        body = f'{head} {rule}args "}}"'
    return f"{rule}: {body}\n{rule}args: {schema}"


def told_of(tools: Sequence[Tool], several: bool) -> str:
    """What a model whose template knows no tools is told of them."""
    known = "\n".join(
        json.dumps(tool.plain()["function"], ensure_ascii=False) for tool in tools
    )
    text = (
        f"You can call these tools:\n{known}\n\n"
        'To call one, answer with nothing but JSON: {"name": "...", "arguments": {...}}'
    )
    return text + (
        ". For several calls, answer with a list of such objects." if several else "."
    )
