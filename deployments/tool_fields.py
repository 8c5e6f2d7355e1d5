"""What clients may send about tools: OpenAI's fields as Structs."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from medha_actors.errors import RequestError

_MAX_TOOL_CHARS: Final = 256
# What OpenAI allows, and dots and slashes, which other servers' tools have.
ToolName = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9_./:-]+$", max_length=_MAX_TOOL_CHARS)
]


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """A function that the model may call. `strict`: what its schema says is enforced to the last
    keyword, or refused."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """Unknown fields are hints to other servers (cache_control)."""

    type: Literal["function"] = "function"
    function: Function

    def plain(self) -> dict[str, Any]:
        """As templates want it."""
        function: dict[str, Any] = {"name": self.function.name}
        if self.function.description is not None:
            function["description"] = self.function.description
        function["parameters"] = self.function.parameters or {
            "type": "object",
            "properties": {},
        }
        return {"type": self.type, "function": function}


class NamedFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: ToolName


class NamedTool(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The tool that must be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


def callable_tools(
    tools: list[Tool], choice: ToolChoice | None, most: int
) -> list[Tool]:
    """The tools that may be called: all, none, or the one that must be. Raises RequestError."""
    if len(tools) > most:
        raise _wrong("tools", f"has {len(tools)} entries, at most {most} are allowed")
    names = [tool.function.name for tool in tools]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise _wrong("tools", f"has {twice!r} twice")
    if choice == "none":
        return []
    if isinstance(choice, NamedTool):
        if choice.function.name not in names:
            raise _wrong(
                "tool_choice", f"names {choice.function.name!r}, which tools has not"
            )
        return [tool for tool in tools if tool.function.name == choice.function.name]
    if choice == "required" and not tools:
        raise _wrong("tool_choice", "is 'required', but there are no tools")
    return tools


def _wrong(param: str, what: str) -> RequestError:
    return RequestError(f"{param}: {what}", param=param, code="invalid_value")
