"""/openapi.json: an OpenAPI 3.1 description, made from the Structs that the routes really use, and
from what these may have beside their fields (deployments.decoding)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from deployments import histories
from deployments.decoding import EXTENSION, SWITCHABLE, Beside
from deployments.histories import Message, SentMessage, SentPart
from deployments.operations import EVENTS, JSON, Operation

Schema = dict[str, Any]
_REF: Final = "#/components/schemas/{name}"
# Of turns whose role is not the assistant's.
_NO_CALLS: Final[Schema] = {
    "properties": {"tool_calls": {"maxItems": 0}, "function_call": {"type": "null"}}
}
_PARAMETER: Final = re.compile(r"\{(\w+)\}")


def document(operations: Iterable[Operation], version: str, with_keys: bool) -> Schema:
    """The whole description; `with_keys`: the server has API keys."""
    rows = list(operations)
    schemas = _schemas(rows)
    paths = {row.path: _path(row, with_keys) for row in rows}
    components: Schema = {"schemas": schemas}
    whole: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": "Medha on Ray",
            "version": version,
            "description": "An API for language models: OpenAI's, and Anthropic's messages.",
        },
        "paths": paths,
        "components": components,
    }
    if with_keys:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        whole["security"] = [{"bearer": []}, {"header": []}]
    return whole


def _schemas(rows: list[Operation]) -> Schema:
    bodies = {row.body for row in rows if row.body is not None}
    replies = {row.reply for row in rows if row.reply is not None}
    choices = {row.choice for row in rows if row.choice is not None}
    errors = {row.error for row in rows}
    named: set[type[msgspec.Struct]] = {
        *bodies,
        *replies,
        *choices,
        *errors,
        SentMessage,
    }
    kinds = sorted(named, key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(kinds, ref_template=_REF)
    for row in rows:
        if row.body is not None:
            _widen(schemas[row.body.__name__], row.beside)
    _describe_messages(schemas)
    return schemas


def _describe_messages(schemas: Schema) -> None:
    """Turns of a chat as `histories.message` takes them."""
    message = schemas.pop(SentMessage.__name__)
    _widen(message, histories.BESIDE)
    says = [_is_there("content"), _is_there("refusal")]
    message["allOf"] = [
        _unless("role", histories.MAY_BE_EMPTY, {"anyOf": says}),
        _unless("role", [histories.CALLER], _NO_CALLS),
    ]
    schemas[Message.__name__] = {**message, "title": Message.__name__}
    part = schemas[SentPart.__name__]
    _widen(part, histories.PART_BESIDE)
    part["if"] = {"properties": {"type": {"const": "refusal"}}, "required": ["type"]}
    part["then"] = _is_there("refusal")
    part["else"] = _is_there("text")


def _unless(name: str, values: Iterable[str], otherwise: Schema) -> Schema:
    return {"if": {"properties": {name: {"enum": list(values)}}}, "else": otherwise}


def _is_there(name: str) -> Schema:
    """And is not null."""
    return {"required": [name], "properties": {name: {"not": {"type": "null"}}}}


def _widen(schema: Schema, beside: Beside) -> None:
    """What an object may have beside its fields; where a field may be left out, null means the
    same."""
    fields = schema["properties"]
    required = schema.get("required", [])
    for name, field in fields.items():
        if name not in required:
            fields[name] = _or_nothing(name, field)
    for name, values in beside.neutral.items():
        fields.setdefault(name, {"enum": [*values, None]})
    for name in sorted(beside.ignored):
        fields.setdefault(name, {"description": "ignored"})
    schema["patternProperties"] = {f"^{EXTENSION}": {}}
    schema["additionalProperties"] = {"type": "null"}


def _or_nothing(name: str, field: Schema) -> Schema:
    """A field's schema, and the values that are as if it were not there."""
    values = [{"type": "null"}, *([{"const": False}] if name in SWITCHABLE else [])]
    default = {"default": field.pop("default")} if "default" in field else {}
    if {"type": "null"} in field.get("anyOf", []):
        return {"anyOf": [*field["anyOf"], *values[1:]], **default}
    return {"anyOf": [field, *values], **default}


def _path(row: Operation, with_keys: bool) -> Schema:
    return {
        method.lower(): _operation(row, method, with_keys) for method in row.methods
    }


def _operation(row: Operation, method: str, with_keys: bool) -> Schema:
    words = [word for word in re.split(r"\W+", row.path) if word]
    described: Schema = {
        "operationId": "_".join([method.lower(), *words]),
        "summary": row.summary,
        "responses": {str(row.status): _answer(row), "default": _error(row)},
    }
    parameters = [
        _parameter(name, "path", {"type": "string"}) for name in _names(row.path)
    ]
    parameters += [_parameter(name, "query", schema) for name, schema in row.query]
    if parameters:
        described["parameters"] = parameters
    if row.body is not None:
        content = {JSON: {"schema": _reference(row.body)}}
        described["requestBody"] = {"required": True, "content": content}
    if with_keys and not row.key:
        described["security"] = []
    return described


def _names(path: str) -> list[str]:
    return _PARAMETER.findall(path)


def _parameter(name: str, place: str, schema: Schema) -> Schema:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _answer(row: Operation) -> Schema:
    described: Schema = {"description": row.summary}
    content: Schema = {}
    for media in row.media:
        if media == JSON:
            content[media] = {"schema": _reply(row)}
        elif media == EVENTS:
            content[media] = {}  # 3.1 has no words for what is inside of events
        else:
            content[media] = {"schema": {"type": "string"}}
    if content:
        described["content"] = content
    return described


def _reply(row: Operation) -> Schema:
    if row.reply is None:
        return {"type": "object"}
    if row.choice is None:
        return _reference(row.reply)
    choices = {"properties": {"choices": {"items": _reference(row.choice)}}}
    return {"allOf": [_reference(row.reply), choices]}


def _error(row: Operation) -> Schema:
    content = {JSON: {"schema": _reference(row.error)}}
    return {"description": "What went wrong", "content": content}


def _reference(kind: type[msgspec.Struct]) -> Schema:
    return {"$ref": _REF.format(name=kind.__name__)}
