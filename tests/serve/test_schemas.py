"""Schemas whose objects are closed: where it is meant, and nowhere else."""

from __future__ import annotations

import pytest

from deployments.schemas import closed

TEXT = {"type": "string"}
OPEN = {"type": "object", "properties": {"city": TEXT}}
CLOSED = OPEN | {"additionalProperties": False}
REFERENCE = {"$ref": "#/$defs/a"}


@pytest.mark.parametrize(
    ("schema", "right"),
    [
        (OPEN, CLOSED),
        ({"items": OPEN}, {"items": CLOSED}),
        ({"anyOf": [OPEN, TEXT]}, {"anyOf": [CLOSED, TEXT]}),
        (REFERENCE | {"$defs": {"a": OPEN}}, REFERENCE | {"$defs": {"a": CLOSED}}),
        (
            {"properties": {"properties": OPEN}},
            {"properties": {"properties": CLOSED}, "additionalProperties": False},
        ),
    ],
)
def test_objects_have_the_properties_that_are_named(schema, right) -> None:
    given = dict(schema)
    assert closed(given) == right
    assert given == schema


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        OPEN | {"additionalProperties": True},
        OPEN | {"additionalProperties": TEXT},
        OPEN | {"patternProperties": {"^x": TEXT}},
        OPEN | {"anyOf": [{"required": ["city"]}, OPEN]},
        {"allOf": [OPEN, {"properties": {"day": TEXT}}]},
        {"items": {"allOf": [OPEN]}, "properties": {"a": TEXT}},
        {"const": OPEN},
        {"enum": [OPEN, 1]},
        {"properties": "wrong", "$ref": 5, "items": None},
    ],
)
def test_what_is_said_otherwise_or_in_several_places_stays(schema) -> None:
    assert closed(schema) == schema
