"""The numbers in a tree of Structs and their bounds: found in the types, and told when a value is
outside."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec
import msgspec.inspect

from medha_actors.errors import ConfigError


class Bounds(NamedTuple):
    """What a number may be, both ends included."""

    low: float
    high: float


def numbers(
    kind: type[msgspec.Struct], prefix: str = ""
) -> Iterator[tuple[str, Bounds]]:
    """The dotted path of every number in a tree of Structs, with its bounds (infinite where the
    type states none)."""
    for field in msgspec.structs.fields(kind):
        path = prefix + field.encode_name
        for part in _parts(msgspec.inspect.type_info(field.type)):
            if isinstance(part, msgspec.inspect.StructType):
                yield from numbers(part.cls, path + ".")
            elif isinstance(part, msgspec.inspect.IntType | msgspec.inspect.FloatType):
                lower = [-math.inf, part.gt, part.ge]
                upper = [math.inf, part.lt, part.le]
                low = max(bound for bound in lower if bound is not None)
                high = min(bound for bound in upper if bound is not None)
                yield path, Bounds(low, high)


def _parts(kind: msgspec.inspect.Type) -> tuple[msgspec.inspect.Type, ...]:
    """A union's members; any other type alone."""
    return kind.types if isinstance(kind, msgspec.inspect.UnionType) else (kind,)


def check(tree: msgspec.Struct, path: str, bounds: Bounds) -> None:
    """Raises ConfigError if there is a number at this path, and it is outside."""
    value = _value(tree, path)
    if value is not None and not bounds.low <= value <= bounds.high:
        raise _outside(path, value, bounds)


def _value(tree: msgspec.Struct, path: str) -> float | None:
    """The number at a dotted path; None where it, or a section above it, is not given."""
    value: Any = tree
    for name in path.split("."):
        if value is None:
            break
        value = getattr(value, name)
    number: float | None = value
    return number


def _outside(path: str, value: object, bounds: Bounds) -> ConfigError:
    return ConfigError(
        f"args: {path} is {value}, allowed is {bounds.low} to {bounds.high}"
    )


_PATH: Final = re.compile(
    r"^Expected `(?:int|float)` [<>]=? .* - at `\$\.(?P<path>[\w.]+)`$"
)


def explained(text: str, args: Mapping[str, Any], kind: type[msgspec.Struct]) -> str:
    """msgspec's message about `args` as this kind; for a number outside its bounds, its value and
    both bounds instead."""
    match = _PATH.match(text)
    bounds = dict(numbers(kind)).get(match["path"]) if match else None
    if match is None or bounds is None:
        return f"args: {text}".replace("`$", "`args")
    value: Any = args
    for name in match["path"].split("."):
        value = value[name]
    return _outside(match["path"], value, bounds).message
