"""Turns as Anthropic's clients write them, as turns of a chat.

Results of tools stand in the user's turn there, and are turns of their own here.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from deployments.dialects import asked
from deployments.histories import Message

_THOUGHTS: Final = ("thinking", "redacted_thinking")


class Turn(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One turn: a text, or parts."""

    role: Literal["user", "assistant", "system"]
    content: str | list[dict[str, Any]]


def messages(
    system: str | list[dict[str, Any]] | None, turns: list[Turn]
) -> list[Message]:
    """Raises RequestError."""
    made: list[Message] = []
    if system:
        made.append(
            asked.message({"role": "system", "content": _texts(system)}, "system")
        )
    for i, turn in enumerate(turns):
        made += _turn(turn, f"messages[{i}]")
    return made


def _turn(turn: Turn, name: str) -> list[Message]:
    if isinstance(turn.content, str):
        return [asked.message({"role": turn.role, "content": turn.content}, name)]
    if turn.role == "assistant":
        return [_assistant(turn.content, name)]
    return _user(turn.role, turn.content, name)


def _user(role: str, parts: list[dict[str, Any]], name: str) -> list[Message]:
    """Results of tools, and what is said before and after them, in this order."""
    made: list[Message] = []
    said: list[dict[str, Any]] = []
    for i, part in enumerate(parts):
        where = f"{name}.content[{i}]"
        if part.get("type") == "tool_result" and role == "user":
            if said:
                made.append(asked.message({"role": role, "content": said}, name))
                said = []
            made.append(_result(part, where))
        else:
            said.append(_text(part, where))
    if said or not parts:
        made.append(asked.message({"role": role, "content": said}, name))
    return made


def _result(part: dict[str, Any], name: str) -> Message:
    content = part.get("content") or ""
    turn = {
        "role": "tool",
        "tool_call_id": part.get("tool_use_id"),
        "content": _texts(content, f"{name}.content"),
    }
    return asked.message(turn, name)


def _assistant(parts: list[dict[str, Any]], name: str) -> Message:
    said: list[dict[str, Any]] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for i, part in enumerate(parts):
        where = f"{name}.content[{i}]"
        kind = part.get("type")
        if kind in _THOUGHTS:
            thoughts.append(str(part.get("thinking") or ""))
        elif kind == "tool_use":
            calls.append(_call(part, where))
        else:
            said.append(_text(part, where))
    turn: dict[str, Any] = {"role": "assistant", "content": said}
    if any(thoughts):
        turn["reasoning_content"] = "\n".join(filter(None, thoughts))
    if calls:
        turn["tool_calls"] = calls
    return asked.message(turn, name)


def _call(part: dict[str, Any], name: str) -> dict[str, Any]:
    arguments = part.get("input") or {}
    if not isinstance(arguments, dict):
        raise asked.wrong(f"{name}.input", "must be an object")
    function = {"name": part.get("name"), "arguments": arguments}
    return {"id": part.get("id"), "function": function}


def _texts(content: Any, name: str = "system") -> Any:
    if not isinstance(content, list):
        return content
    return [_text(part, f"{name}[{i}]") for i, part in enumerate(content)]


def _text(part: Any, name: str) -> dict[str, Any]:
    """A part without what says nothing to a model."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text":
        raise asked.unsupported(
            f"{name}.type", f"only text is supported, not {str(kind)[:40]!r}"
        )
    return {"type": "text", "text": part.get("text")}
