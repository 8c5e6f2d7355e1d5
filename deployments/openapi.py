"""/openapi.json: an OpenAPI 3.1 description, made from the Structs that the routes really use."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from deployments.histories import Message
from deployments.operations import EVENTS, JSON, Operation

Schema = dict[str, Any]
_REF: Final = "#/components/schemas/{name}"
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
    named: set[type[msgspec.Struct]] = {*bodies, *replies, *choices, *errors, Message}
    kinds = sorted(named, key=lambda kind: kind.__name__)
    _, schemas = msgspec.json.schema_components(kinds, ref_template=_REF)
    asked: set[type[msgspec.Struct]] = {*bodies, Message}
    for kind in asked:
        _allow_null(schemas[kind.__name__])
    return schemas


def _allow_null(schema: Schema) -> None:
    """Where a field may be left out, null means the same."""
    required = schema.get("required", [])
    for name, field in schema["properties"].items():
        if name not in required and {"type": "null"} not in field.get("anyOf", []):
            default = {"default": field.pop("default")} if "default" in field else {}
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}], **default}


def _path(row: Operation, with_keys: bool) -> Schema:
    return {method.lower(): _operation(row, method, with_keys) for method in row.methods}


def _operation(row: Operation, method: str, with_keys: bool) -> Schema:
    words = [word for word in re.split(r"\W+", row.path) if word]
    described: Schema = {
        "operationId": "_".join([method.lower(), *words]),
        "summary": row.summary,
        "responses": {str(row.status): _answer(row), "default": _error(row)},
    }
    parameters = [_parameter(name, "path", {"type": "string"}) for name in _names(row.path)]
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
