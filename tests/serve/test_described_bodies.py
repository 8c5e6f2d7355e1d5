"""/openapi.json says of bodies what the server takes, no more and no less."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from deployments import histories, openapi, protocol
from deployments.dialects import messages_body, responses_body
from deployments.operations import operation_at
from medha_actors.errors import RequestError

PATHS = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/responses/input_tokens",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/tokenize",
    "/detokenize",
)
LEAST: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
    "/v1/responses": {"input": "x"},
    "/v1/responses/input_tokens": {"input": "x"},
    "/v1/messages": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "x"}]},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [1]},
}
DOCUMENT = openapi.document([operation_at(path) for path in PATHS], "1", False)
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
VALUES = st.sampled_from(
    [
        None, True, False, 0, 1, -1, 2, 1.0, 0.5, 1e9, 2**31, "", "x", "none", "auto", "text",
        "disabled", [], [1], ["x"], ["text"], [["x"]], [{}], {}, {"x": 1}, {"type": "text"},
        {"name": "f"}, [CALL], {"type": "json_object"}, [{"type": "text", "text": "x"}],
    ]
)  # fmt: skip
PARTS = st.sampled_from(
    [
        "x", {"text": "x"}, {"type": "text", "text": "x"}, {"type": "text"}, {"type": None},
        {"type": "input_text", "text": "x", "cache_control": {"type": "ephemeral"}, "x_y": 1},
        {"type": "refusal", "refusal": "no"}, {"type": "refusal", "text": "no"}, {}, 1, None,
        {"type": "image_url", "image_url": {"url": "x"}}, {"text": "x", "url": "y"},
        {"type": "output_text", "text": "x", "refusal": None, "annotations": []},
    ]
)  # fmt: skip
CONTENTS = st.one_of(
    st.sampled_from(["", "x", None, 1, {}]), st.lists(PARTS, max_size=3)
)
ROLES = st.sampled_from(
    ["system", "developer", "user", "assistant", "tool", "function", "x", None]
)
TURN_FIELDS: dict[str, Any] = {
    "content": CONTENTS,
    "refusal": st.sampled_from(["no", None, 1]),
    "tool_calls": st.sampled_from([None, [], [CALL], [{}], "x"]),
    "function_call": st.sampled_from([None, {"name": "f"}, {"arguments": {}}]),
    "reasoning": st.sampled_from(["so", None, 1]),
    "reasoning_content": st.sampled_from(["so", None, []]),
    "name": st.sampled_from(["n", None, 1]),
    "tool_call_id": st.sampled_from(["c", None, 1]),
    **dict.fromkeys([*histories.BESIDE.ignored, "x_trace", "unknown"], VALUES),
}
TURNS = st.fixed_dictionaries({"role": ROLES}, optional=TURN_FIELDS)
CAREFULLY = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def validator(schema: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def described(path: str) -> Draft202012Validator:
    asked = DOCUMENT["paths"][path]["post"]["requestBody"]
    return validator(asked["content"]["application/json"]["schema"])


def is_taken(path: str, body: dict[str, Any]) -> bool:
    """Whether the server can read it; what it asks for may be impossible all the same."""
    operation = operation_at(path)
    assert operation.body is not None
    try:
        protocol.decode(json.dumps(body).encode(), operation.body, operation.beside)
    except RequestError:
        return False
    return True


VALIDATORS = {path: described(path) for path in PATHS}


def fields_of(path: str) -> list[str]:
    operation = operation_at(path)
    assert operation.body is not None
    beside = operation.beside
    own = [*operation.body.__struct_fields__, *beside.ignored, *beside.neutral]
    return sorted({*own, "x_trace", "xtrace", "unknown"} - {"messages"})


@pytest.mark.parametrize("path", PATHS)
@given(data=st.data())
@CAREFULLY
def test_fields(path: str, data: st.DataObject) -> None:
    names = data.draw(
        st.lists(st.sampled_from(fields_of(path)), min_size=1, max_size=2)
    )
    body = {**LEAST[path], **{name: data.draw(VALUES) for name in names}}
    if "best_of" in body:  # may be as many as n, but no schema compares fields
        body.pop("n", None)
    assert VALIDATORS[path].is_valid(body) == is_taken(path, body), body


@given(turn=TURNS)
@CAREFULLY
def test_turns_of_a_chat(turn: dict[str, Any]) -> None:
    body = {"messages": [turn]}
    for path in ("/v1/chat/completions", "/tokenize"):
        assert VALIDATORS[path].is_valid(body) == is_taken(path, body), turn


def test_bodies_beside_their_structs_are_those_of_their_dialects() -> None:
    assert operation_at("/v1/responses").beside is responses_body.BESIDE
    assert operation_at("/v1/messages").beside is messages_body.BESIDE
    assert operation_at("/v1/messages/count_tokens").beside is messages_body.BESIDE
