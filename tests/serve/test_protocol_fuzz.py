"""Whatever is sent, a body is read or refused; nothing else can happen."""

import json
import math

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments import limits, protocol
from deployments.dialects import messages_body, responses_body
from deployments.protocol import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from medha_actors.config import LimitsConfig
from medha_actors.errors import RequestError

LIMITS = LimitsConfig()
HELLO = [{"role": "user", "content": "hi"}]
FIELDS = sorted(
    {
        *CompletionBody.__struct_fields__,
        *ChatBody.__struct_fields__,
        "tools",
        "best_of",
        "x",
        "tokens",
    }
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=150)
@given(
    body=st.dictionaries(st.sampled_from(FIELDS), values, max_size=8) | values,
    kind=st.sampled_from([CompletionBody, ChatBody, TokenizeBody, DetokenizeBody]),
    prompt=st.booleans(),
)
def test_any_json_is_ok_or_a_request_error(
    body: object, kind: type, prompt: bool
) -> None:
    if prompt and isinstance(body, dict):
        body = {**body, "prompt": "x", "messages": HELLO} | (
            {} if kind is CompletionBody else {"model": "m"}
        )
    raw = json.dumps(body).encode("utf-8", "surrogatepass")
    try:
        decoded = protocol.decode(raw, kind)
        if isinstance(decoded, CompletionBody | ChatBody):
            limits.check_generation(decoded, LIMITS, 512)
            assert math.isfinite(decoded.temperature)
    except RequestError as error:
        msgspec.json.encode(error.message)


@settings(max_examples=100)
@given(raw=st.binary(max_size=60), tail=st.binary(max_size=10))
def test_any_bytes_are_ok_or_a_request_error(raw: bytes, tail: bytes) -> None:
    for body in (
        raw,
        b'{"prompt": "' + raw + b'"}' + tail,
        b'{"prompt": "x", "n": ' + raw + b"}",
    ):
        try:
            protocol.decode(body, CompletionBody)
        except RequestError as error:
            msgspec.json.encode(error.message)


TYPES = (
    "message", "function_call", "function_call_output", "reasoning", "text", "input_text",
    "tool_use", "tool_result", "thinking", "function", "custom", "auto", "tool", "json_schema",
)  # fmt: skip
WORDS = (
    "type", "role", "content", "text", "name", "call_id", "arguments", "output", "input", "id",
    "tool_use_id", "tools", "tool_choice", "format", "schema", "thinking", "system", "reasoning",
    "output_config", "parameters", "input_schema", "context_management", "edits",
)  # fmt: skip
words = st.sampled_from([*TYPES, "user", "assistant", "system"]) | scalars
trees = st.recursive(
    words,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS), inner, max_size=5)
    ),
    max_leaves=20,
)


@settings(max_examples=300)
@given(body=st.dictionaries(st.sampled_from(WORDS), trees, max_size=6), turns=trees)
def test_any_json_is_a_chat_in_other_words_or_a_request_error(
    body: dict, turns: object
) -> None:
    responses = json.dumps({**body, "input": turns}).encode("utf-8", "surrogatepass")
    messages = json.dumps({**body, "messages": turns, "max_tokens": 5})
    try:
        msgspec.json.encode(responses_body.decode(responses).chat())
    except RequestError as error:
        msgspec.json.encode(error.message)
    try:
        raw = messages.encode("utf-8", "surrogatepass")
        msgspec.json.encode(messages_body.decode(raw).chat(takes_effort=True))
    except RequestError as error:
        msgspec.json.encode(error.message)
