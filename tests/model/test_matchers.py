"""What grammars may cost, with a real vocabulary: schemas of real tools pass, hostile ones end
soon."""

from __future__ import annotations

import contextlib
import json
import random
import time

import numpy as np
import pytest

from medha_actors.config import ModelLoadingConfig
from medha_actors.files.vocabulary import load_vocabulary
from medha_actors.messages import Grammar
from medha_actors.model.matchers import GrammarError, Matchers, require_sound

ENDS = (2,)
PLENTY_S = 2.0  # the slowest step is about 10 ms; a machine that is shared is slower


@pytest.fixture(scope="module")
def matchers():
    config = ModelLoadingConfig()
    return Matchers(lambda: load_vocabulary(config), 49152)


def schema(value):
    return "start: %json " + json.dumps(value)


def walk(matcher, steps, seed=0):
    """Random tokens that are allowed; the slowest step."""
    draw = random.Random(seed)
    slowest = 0.0
    for _ in range(steps):
        started = time.perf_counter()
        packed = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        require_sound(matcher)
        allowed = np.flatnonzero(np.unpackbits(packed, bitorder="little"))
        if matcher.is_stopped():
            break
        allowed = allowed[allowed != ENDS[0]]
        matcher.consume_token(int(draw.choice(list(allowed))))
        require_sound(matcher)
        slowest = max(slowest, time.perf_counter() - started)
    return slowest


KEYS = {"type": "object", "additionalProperties": False}
REAL = {
    "json object": {"type": "object"},
    "200 optional keys": KEYS
    | {"properties": {f"key{i}": {"type": "string"} for i in range(200)}},
    "enum": {"enum": [f"value {i}" for i in range(2000)]},
    "formats": {
        "type": "object",
        "properties": {
            name: {"type": "string", "format": name}
            for name in ("date-time", "email", "uuid")
        },
        "required": ["date-time", "email", "uuid"],
    },
    "tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": KEYS
            | {
                "properties": {
                    "value": {"type": ["number", "null"]},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
                },
                "required": ["value"],
            }
        },
    },
    "tools": {
        "anyOf": [
            KEYS
            | {
                "properties": {
                    "name": {"const": f"tool_{i}"},
                    "arguments": {
                        "type": "object",
                        "properties": {"query": {"type": "string"}},
                    },
                },
                "required": ["name", "arguments"],
            }
            for i in range(64)
        ]
    },
}


@pytest.mark.parametrize("name", REAL)
def test_schemas_of_real_tools(matchers, name):
    for seed in range(3):
        assert (
            walk(matchers.matcher(Grammar(schema(REAL[name]), ENDS)), 40, seed)
            < PLENTY_S
        )


def nested(key, depth):
    value = {"type": "string"}
    for _ in range(depth):
        value = {key: [value]} if key != "items" else {"type": "array", "items": value}
    return schema(value)


HOSTILE = {
    "parentheses": "start: " + "(" * 30_000 + '"a"' + ")" * 30_000,
    "parentheses in a regex": "start: /" + "(" * 5000 + "a" + ")" * 5000 + "/",
    "brackets": "start: %json " + '{"anyOf":[' * 5000 + "{}" + "]}" * 5000,
    "anyOf in anyOf": nested("anyOf", 60),
    "allOf in allOf": nested("allOf", 60),
    "arrays in arrays": nested("items", 60),
    "repeated repetition": "start: /((a{1,1000}){1,1000}){1,1000}/",
    "exponential automaton": r"start: /(.|\n)*a(.|\n){30}/",
    "intersections": "start: A\nA: "
    + " & ".join(rf"/(.|\n)*{c}(.|\n)*/" for c in "abcdefghijkl"),
    "a loop of references": schema(
        {
            "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
            "$ref": "#/$defs/a",
        }
    ),
    "a file elsewhere": schema({"$ref": "http://127.0.0.1:1/schema.json"}),
    "1500 optional keys": schema(
        {
            "type": "object",
            "properties": {f"p{i}": {"type": "string"} for i in range(1500)},
        }
    ),
    "combinations": schema(
        {
            "allOf": [
                {
                    "anyOf": [
                        {"properties": {f"k{i}_{j}": {"type": "string"}}}
                        for j in range(6)
                    ]
                }
                for i in range(8)
            ]
        }
    ),
    "ambiguous": 'start: a\na: a a a | a a | /[a-z]/ | ""',
    "ambiguous in two": 'start: a\na: a a | "x" | "y" a | a "x"',
    "repeated rules": 'start: ("a"{0,1000000}){0,1000000}',
    "alternatives": "start: " + " | ".join(f"/[a-z]*{i}[a-z]*/" for i in range(2000)),
    "an endless array": schema({"minItems": 10**9, "type": "array"}),
    "nothing fits": schema({"allOf": [{"type": "string"}, {"type": "number"}]}),
    "control characters": "start: \x00\xff",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammars_end_soon(matchers, name):
    started = time.perf_counter()
    with contextlib.suppress(GrammarError):
        matcher = matchers.matcher(Grammar(HOSTILE[name], ENDS))
        assert time.perf_counter() - started < PLENTY_S
        assert walk(matcher, 100) < PLENTY_S
    assert time.perf_counter() - started < 5 * PLENTY_S


def test_what_is_compiled_is_kept_and_copies_are_independent(matchers):
    grammar = Grammar('start: "a" "b"', ENDS)
    first = matchers.matcher(grammar)
    second = matchers.matcher(Grammar('start: "a" "b"', ENDS))
    before = second.compute_bitmask()
    allowed = np.flatnonzero(
        np.unpackbits(np.frombuffer(before, np.uint8), bitorder="little")
    )
    assert first.consume_token(int(allowed[0]))
    assert second.compute_bitmask() == before
    for number in range(100):
        matchers.matcher(Grammar(f'start: "{number}"', ENDS))
    assert matchers.matcher(grammar).compute_bitmask() == before
