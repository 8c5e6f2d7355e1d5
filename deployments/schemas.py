"""JSON schemas that say what is meant: an object has the properties that its schema names."""

from __future__ import annotations

from typing import Any, Final

import msgspec

# Words whose values are schemas: one, a list of them, and one under each name.
_ONE: Final = ("items", "additionalProperties", "not")
_MANY: Final = ("prefixItems", "anyOf", "oneOf")
_NAMED: Final = ("properties", "$defs", "definitions")
# Beside `properties`, or anywhere at all: what an object may have is not said in one place.
_COMBINED: Final = frozenset({
    "$ref",
    "allOf",
    "anyOf",
    "dependentSchemas",
    "if",
    "oneOf",
    "patternProperties",
    "unevaluatedProperties",
})  # fmt: skip
_ANYWHERE: Final = frozenset({"$dynamicRef", "allOf", "if", "unevaluatedProperties"})


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """A copy in which objects that name their properties, and do not say whether they have others,
    have none. What fits it fits `schema`.

    A schema allows properties that it does not name; a small model that may write them does, until
    its tokens run out. llama.cpp and xgrammar close objects in the same way. A schema that says in
    several places what one object may have is left as it is.
    """
    whole: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(schema))
    parts = _parts(whole)
    if any(_is_combined(part) for part in parts):
        return whole
    for part in parts:
        if "properties" in part and "additionalProperties" not in part:
            part["additionalProperties"] = False
    return whole


def _is_combined(part: dict[str, Any]) -> bool:
    if not _ANYWHERE.isdisjoint(part):
        return True
    return "properties" in part and not _COMBINED.isdisjoint(part)


def _parts(whole: dict[str, Any]) -> list[dict[str, Any]]:
    """`whole` and all schemas in it: what is only a value, of `const` or `enum`, is none."""
    found: list[dict[str, Any]] = []
    waiting: list[Any] = [whole]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, dict):
            continue
        found.append(part)
        waiting += [part.get(word) for word in _ONE]
        for word in _MANY:
            several = part.get(word)
            waiting += several if isinstance(several, list) else []
        for word in _NAMED:
            named = part.get(word)
            waiting += named.values() if isinstance(named, dict) else []
    return found
