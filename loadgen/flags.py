"""Command-line flags out of the Structs that they fill.

A field is a flag: its name is the flag's, its type says what is read, its default is what the help
shows, its bounds are what is refused. What the type cannot say stands in its `flag(...)`:

    class Pace(msgspec.Struct):
        num_warmups: Annotated[int, flag("requests sent before, one by one", ge=0)] = 0

gives `--num-warmups NUM_WARMUPS   requests sent before, one by one (0)`.
"""

from __future__ import annotations

import argparse
import json
import math
import types
from collections.abc import Iterator
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

from loadgen.errors import LoadgenError

Filled = TypeVar("Filled", bound=msgspec.Struct)
Group = argparse.ArgumentParser | argparse._ArgumentGroup


class Flag(msgspec.Struct, frozen=True, kw_only=True):
    """What a field's type does not say. Made by `flag`."""

    text: str
    shown: str | None  # in the help, where the default says nothing
    name: str | None  # of the flag, where it is not the field's
    aliases: tuple[str, ...]
    choices: tuple[str, ...] | None
    metavar: str | tuple[str, ...] | None
    repeated: bool  # given once per value; other flags of tuples are given once for all
    gt: float | None
    ge: float | None
    le: float | None

    def holds(self, number: float) -> bool:
        """Whether a number lies within the bounds; what is not a number lies within none."""
        if math.isnan(number):
            return False
        above = self.gt is None or number > self.gt
        not_below = self.ge is None or number >= self.ge
        not_above = self.le is None or number <= self.le
        return above and not_below and not_above

    def bounds(self) -> str:
        """In words."""
        parts = []
        if self.gt is not None:
            parts.append(f"above {self.gt:g}")
        if self.ge is not None:
            parts.append(f"at least {self.ge:g}")
        if self.le is not None:
            parts.append(f"at most {self.le:g}")
        return " and ".join(parts) or "a number"


def flag(
    text: str = "",
    *,
    shown: str | None = None,
    name: str | None = None,
    aliases: tuple[str, ...] = (),
    choices: tuple[str, ...] | None = None,
    metavar: str | tuple[str, ...] | None = None,
    repeated: bool = False,
    gt: float | None = None,
    ge: float | None = None,
    le: float | None = None,
) -> Flag:
    """A field's help, and whatever else `Flag` tells of it."""
    return Flag(
        text=text,
        shown=shown,
        name=name,
        aliases=aliases,
        choices=choices,
        metavar=metavar,
        repeated=repeated,
        gt=gt,
        ge=ge,
        le=le,
    )


class _Field(msgspec.Struct, frozen=True):
    """A field of a Struct as a flag."""

    name: str
    kind: Any  # int, float, str, bool, dict, a Literal, or the type of a tuple's items
    several: bool
    count: int | None  # of a tuple with so many items
    default: Any
    about: Flag

    @property
    def flag(self) -> str:
        return self.about.name or "--" + self.name.replace("_", "-")

    @property
    def help(self) -> str:
        shown = self.about.shown
        if shown is None:
            shown = _as_shown(self.default)
        return f"{self.about.text} ({shown})".strip() if shown else self.about.text


def add_flags(group: Group, kind: type[msgspec.Struct]) -> None:
    """Add the flags of a Struct to a parser or a group of one. What is not given is absent from the
    namespace, so that defaults stand in the Struct alone."""
    for field in _fields(kind):
        given: dict[str, Any] = {"dest": field.name, "help": field.help or None}
        if field.kind is bool:
            group.add_argument(field.flag, action="store_true", **given)
            continue
        given["metavar"] = field.about.metavar
        given["choices"] = field.about.choices
        if get_origin(field.kind) is Literal:
            given["choices"] = get_args(field.kind)
        elif field.kind is dict:
            given["type"] = _json_object
        elif field.kind is not str:
            given["type"] = field.kind
        if field.about.repeated:
            given["action"] = "append"
        elif field.several:
            given["nargs"] = field.count or "+"
        group.add_argument(field.flag, *field.about.aliases, **given)


def fill(arguments: argparse.Namespace, kind: type[Filled], **more: Any) -> Filled:
    """The Struct with whatever was given of its fields; raises LoadgenError for what is out of
    bounds."""
    given = dict(more)
    for name in kind.__struct_fields__:
        if hasattr(arguments, name):
            value = getattr(arguments, name)
            given[name] = tuple(value) if isinstance(value, list) else value
    filled = kind(**given)
    check(filled)
    return filled


def check(options: msgspec.Struct) -> None:
    """Raise LoadgenError for a number that is out of its field's bounds."""
    for field in _fields(type(options)):
        value = getattr(options, field.name)
        values = value if isinstance(value, tuple) else (value,)
        for number in values:
            if isinstance(number, int | float) and not field.about.holds(number):
                raise LoadgenError(f"{field.flag} must be {field.about.bounds()}")


def _fields(kind: type[msgspec.Struct]) -> Iterator[_Field]:
    """Fields without a `flag` are none of the user's."""
    hints = get_type_hints(kind, include_extras=True)
    for field in msgspec.structs.fields(kind):
        hint = hints[field.name]
        if get_origin(hint) is not Annotated:
            continue
        (about,) = hint.__metadata__
        item = _without_none(hint.__origin__)
        several = get_origin(item) is tuple
        count = None
        if several:
            items = get_args(item)
            count = None if items[-1] is Ellipsis else len(items)
            item = items[0]
        elif get_origin(item) is dict:
            item = dict
        yield _Field(field.name, item, several, count, _default(field), about)


def _without_none(hint: Any) -> Any:
    if get_origin(hint) not in (types.UnionType, Union):
        return hint
    (kind,) = [part for part in get_args(hint) if part is not types.NoneType]
    return kind


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


def _as_shown(default: Any) -> str:
    """A default as the help shows it; nothing where it says nothing."""
    if isinstance(default, bool) or default in (None, "", (), {}, math.inf):
        return ""
    if isinstance(default, tuple):
        return " ".join(_as_shown(value) for value in default)
    return f"{default:g}" if isinstance(default, float) else str(default)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return value
