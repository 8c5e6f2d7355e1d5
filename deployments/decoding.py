"""JSON as Structs. Null means the default, and `1.0` is an integer. A field that a Struct does not
have is an error, because it might change the result; fields that never change it, those that start
with `x_`, and values that ask for what happens anyway, are dropped.
"""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Mapping
from typing import (
    Any,
    Final,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

from medha_actors.errors import RequestError

B = TypeVar("B", bound=msgspec.Struct)
SWITCHABLE: Final = frozenset({"prompt_logprobs"})  # numbers for which false is as null
EXTENSION: Final = "x_"  # what a field that nobody reads begins with


class Beside(NamedTuple):
    """What an object may have beside the fields of its Struct: what is ignored, and what is refused
    unless it asks for what happens anyway."""

    ignored: frozenset[str]
    neutral: Mapping[str, tuple[Any, ...]]


def parsed(body: bytes) -> dict[str, Any]:
    """A body's object; raises RequestError."""
    try:
        tree = msgspec.json.decode(body)
    except RecursionError:
        raise RequestError("the JSON is nested too deeply") from None
    except (msgspec.ValidationError, UnicodeDecodeError, ValueError) as error:
        raise RequestError(f"the body is not valid JSON in UTF-8: {error}") from None
    if not isinstance(tree, dict):
        raise RequestError("the body must be a JSON object")
    return tree


def converted(tree: Any, kind: type[B], name: str = "") -> B:
    """A JSON value as a Struct; raises RequestError. `name`: its path in the body."""
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        raise _named(str(error), name) from None


def known(
    tree: dict[str, Any], kind: type[msgspec.Struct], beside: Beside, name: str = ""
) -> dict[str, Any]:
    """Drop nulls and what changes nothing; refuse other fields that `kind` does not have, with a
    RequestError. `name`: the object's path in the body."""
    integers = _integer_fields(kind)
    kept: dict[str, Any] = {}
    for key, value in tree.items():
        if value is None or (value is False and key in SWITCHABLE):
            continue
        if key in integers:
            kept[key] = _integer(value)
        elif key in kind.__struct_fields__:
            kept[key] = value
        elif key in beside.neutral:
            if not (
                _is_one_of(value, beside.neutral[key]) or _same_as_n(key, value, tree)
            ):
                raise RequestError(
                    f"{key} is not supported by this server",
                    param=key,
                    code="unsupported",
                )
        elif key not in beside.ignored and not key.startswith(EXTENSION):
            hint = "; use structured_outputs" if key.startswith("guided_") else ""
            where = f"{name}.{key[:80]}" if name else key[:80]
            raise RequestError(
                f"unknown field {where!r}{hint}", param=where, code="unknown_field"
            )
    return kept


def _is_one_of(value: Any, neutral: tuple[Any, ...]) -> bool:
    """As JSON has it, where true is not 1."""
    alike = [one for one in neutral if isinstance(one, bool) == isinstance(value, bool)]
    return value in alike


def _same_as_n(key: str, value: Any, tree: dict[str, Any]) -> bool:
    return key == "best_of" and _is_one_of(value, (tree.get("n") or 1,))


def _integer(value: Any) -> Any:
    """What JavaScript and spreadsheets write for a whole number is one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


@functools.cache
def _integer_fields(kind: type[msgspec.Struct]) -> frozenset[str]:
    """The fields that are one integer, or null."""
    hints: Mapping[str, Any] = get_type_hints(kind)
    return frozenset(name for name, hint in hints.items() if int in _members(hint))


def _members(hint: Any) -> tuple[Any, ...]:
    parts = get_args(hint) if get_origin(hint) in (types.UnionType, Union) else (hint,)
    return parts if float not in parts else ()


_PATH: Final = re.compile(
    r"^(?P<what>.*) - at `(?:key in )?\$\.?(?P<path>.*)`$", re.DOTALL
)
_MISSING: Final = re.compile(r"missing required field `(?P<name>[^`]*)`")
_UNKNOWN: Final = re.compile(r"contains unknown field `(?P<name>[^`]*)`")


def _named(text: str, name: str = "") -> RequestError:
    """msgspec's message as an error that names the field, inside of `name`."""
    match = _PATH.match(text)
    what, path = (match["what"], match["path"]) if match else (text, "")
    field = _MISSING.search(what) or _UNKNOWN.search(what)
    parts = (name, path, field["name"] if field else "")
    param = ".".join(part for part in parts if part).replace(".[", "[") or None
    message = f"{param}: {what}" if param else what
    return RequestError(
        message[:500],
        param=param,
        code="missing_field" if _MISSING.search(what) else "invalid_value",
    )
