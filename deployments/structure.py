"""What an answer must look like: `response_format` and vLLM's `structured_outputs`, as a grammar.

Grammars are written in llguidance's variant of Lark. Nothing here is checked beyond what its JSON
form says: deployments.grammars tries a grammar before it is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from llguidance import regex_to_lark
from llguidance.gbnf_to_lark import gbnf_to_lark
from msgspec import Meta

from deployments.schemas import closed
from medha_actors.errors import RequestError

Name = Annotated[str, Meta(max_length=256)]
Schema = dict[str, Any] | bool
# Between the parts of a JSON value; a small model that may write endless whitespace does.
_WHITESPACE: Final = r"[ \t\r\n]{1,24}"
# Of a grammar of llama.cpp's kind: it is rewritten in a time that grows with the square.
_MOST_RULES: Final = 256
_MOST_CHARS: Final = 32_768


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A JSON object in a body."""


class JsonSchema(_Part, frozen=True, kw_only=True):
    """OpenAI's wrapper of a schema. Without `strict`, keywords that cannot be enforced are let
    go."""

    name: Name | None = None
    description: str | None = None
    schema: Schema | None = None
    strict: bool | None = None


class ResponseFormat(_Part, frozen=True, kw_only=True):
    """OpenAI's field; `schema` beside json_object is llama.cpp's."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema: Schema | None = None


class StructuredOutputs(_Part, frozen=True, kw_only=True):
    """vLLM's field; one of the first five."""

    json: str | Schema | None = None
    regex: str | None = None
    choice: Annotated[list[str], Meta(min_length=1, max_length=4096)] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool = False


class Wanted(NamedTuple):
    """A grammar, and the field that asked for it."""

    param: str
    text: str


def of_response_format(asked: ResponseFormat) -> Wanted:
    """For a type that is not text; raises RequestError."""
    if asked.type == "json_object":
        schema = {"type": "object"} if asked.schema is None else asked.schema
        return _wanted("response_format", lambda: "start: " + json_text(schema))
    if asked.json_schema is None or asked.json_schema.schema is None:
        raise RequestError(
            "response_format.json_schema.schema is missing",
            param="response_format.json_schema.schema",
            code="missing_field",
        )
    wrapped = asked.json_schema.schema
    lenient = not asked.json_schema.strict
    return _wanted(
        "response_format.json_schema.schema",
        lambda: "start: " + json_text(wrapped, lenient=lenient),
    )


def of_structured_outputs(asked: StructuredOutputs) -> Wanted:
    """May take a while for long grammars; raises RequestError."""
    given = {
        "json": asked.json,
        "regex": asked.regex,
        "choice": asked.choice,
        "grammar": asked.grammar,
        "json_object": asked.json_object or None,
    }
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise RequestError(
            f"structured_outputs needs exactly one of {', '.join(given)}",
            param="structured_outputs",
            code="invalid_value",
        )
    return _wanted(f"structured_outputs.{names[0]}", lambda: _text(asked))


def _wanted(param: str, make: Callable[[], str]) -> Wanted:
    try:
        return Wanted(param, make())
    except (ValueError, RecursionError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise RequestError(
            f"{param}: {reason[:300]}", param=param, code="invalid_grammar"
        ) from None


def _text(asked: StructuredOutputs) -> str:
    if asked.regex is not None:
        return f"start: /{regex_to_lark(unanchored(asked.regex), 'd')}/"
    if asked.choice is not None:
        return "start: " + " | ".join(json.dumps(choice) for choice in asked.choice)
    if asked.grammar is not None:
        return _lark(asked.grammar)
    schema = {"type": "object"} if asked.json is None else asked.json
    if isinstance(schema, str):
        schema = json.loads(schema)
        if not isinstance(schema, dict | bool):
            raise ValueError("is not a JSON schema")
    whitespace = "" if asked.disable_any_whitespace else asked.whitespace_pattern
    return "start: " + json_text(schema, whitespace=whitespace)


def _lark(grammar: str) -> str:
    """A grammar of llama.cpp's kind in Lark; one in Lark as it is."""
    rules = grammar.count("::=")
    if not rules:
        return grammar
    if rules > _MOST_RULES or len(grammar) > _MOST_CHARS:
        raise ValueError(
            f"has over {_MOST_RULES} rules or {_MOST_CHARS} characters; Lark may"
        )
    try:
        return str(gbnf_to_lark(grammar))
    except Exception as error:  # it can fail in any way on what it did not expect
        raise ValueError(f"cannot be read: {error}") from None


def unanchored(regex: str) -> str:
    """A pattern without the anchors around it: it holds for the whole answer anyway."""
    regex = regex.removeprefix("^")
    if regex.endswith("$") and not regex.endswith("\\$"):
        return regex[:-1]
    return regex


def json_text(
    schema: Schema, *, lenient: bool = False, whitespace: str | None = None
) -> str:
    """A part of a grammar: a JSON value of this schema. `whitespace`: a pattern for what may stand
    between its parts; empty: nothing."""
    if schema is False:
        raise ValueError("nothing fits the schema `false`")
    whole: dict[str, Any] = {} if schema is True else closed(schema)
    options: dict[str, Any] = {"lenient": lenient}
    if whitespace == "":
        options["whitespace_flexible"] = False
    else:
        options["whitespace_pattern"] = whitespace or _WHITESPACE
    asked = whole.get("x-guidance")
    whole["x-guidance"] = options | (asked if isinstance(asked, dict) else {})
    return "%json " + msgspec.json.encode(whole).decode()
