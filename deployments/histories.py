"""Chats as agents keep them: answers without text that call tools, turns of tools, refusals, text
in several parts. What only text can say is accepted; an image is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from medha_actors.errors import RequestError

ShortText = Annotated[str, Meta(max_length=256)]
_TURN_CHARS: Final = 50  # what a turn costs beside its text


class ContentPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A piece of text."""

    text: str
    type: Literal["text"] = "text"


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """Arguments come as OpenAI writes them, JSON in a string, or as an object."""

    name: ShortText
    arguments: str | dict[str, Any] | None = None

    @property
    def chars(self) -> int:
        """Characters of the arguments."""
        if isinstance(self.arguments, dict):
            return len(msgspec.json.encode(self.arguments))
        return len(self.arguments or "")

    def parsed(self) -> Any:
        """The arguments as templates want them: an object if they are one."""
        if not isinstance(self.arguments, str):
            return self.arguments or {}
        try:
            value = msgspec.json.decode(self.arguments or "{}")
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return self.arguments
        return value if isinstance(value, dict) else self.arguments


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call that the model asked for. What else a server wrote into it is no text."""

    function: FunctionCall
    id: ShortText | None = None
    type: Literal["function"] = "function"


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One turn of a chat. `developer` is what newer OpenAI clients call `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart]
    name: ShortText | None = None
    tool_calls: list[ToolCall] = []
    tool_call_id: ShortText | None = None
    reasoning_content: str | None = None

    @property
    def text(self) -> str:
        """The content as one string; parts are lines, as in vLLM and llama.cpp."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join([part.text for part in self.content])

    @property
    def chars(self) -> int:
        """About how many characters there are to render."""
        called = [len(call.function.name) + call.function.chars for call in self.tool_calls]
        return len(self.text) + len(self.reasoning_content or "") + sum(called) + _TURN_CHARS


# What clients send back of an answer, or keep beside it, that says nothing to the model.
_IGNORED: Final = frozenset(
    {
        "annotations", "cache_control", "id", "metadata", "parsed", "provider_specific_fields",
        "reasoning_details", "status", "thinking_blocks", "weight",
    }
)  # fmt: skip
_PART_IGNORED: Final = frozenset(
    {"annotations", "cache_control", "citations", "id", "prompt_cache_breakpoint"}
)
_TEXT_TYPES: Final = ("text", "input_text", "output_text")
_MAY_BE_EMPTY: Final = ("assistant", "tool")


def normalised(message: Any, name: str) -> Any:
    """A message of any accepted shape in the one shape that `Message` has; raises RequestError.
    What is wrong beyond that stays for the schema to find."""
    if not isinstance(message, dict):
        return message
    given = {key: value for key, value in message.items() if value is not None}
    made: dict[str, Any] = {}
    for key, value in given.items():
        if key in _IGNORED or key.startswith("x_"):
            continue
        made[key] = value
    if made.get("role") == "function":  # before there were tools
        made["role"] = "tool"
    if "function_call" in made:
        made["tool_calls"] = [{"function": made.pop("function_call")}]
    if "reasoning" in made:
        made.setdefault("reasoning_content", made.pop("reasoning"))
    refusal = made.pop("refusal", None)
    if "content" not in made and refusal is not None:
        made["content"] = refusal
    if "content" not in made and made.get("role") in _MAY_BE_EMPTY:
        made["content"] = ""
    content = made.get("content")
    if isinstance(content, list):
        made["content"] = [_part(part, f"{name}.content[{i}]") for i, part in enumerate(content)]
    if made.get("role") != "assistant" and made.get("tool_calls"):
        raise RequestError(
            f"{name}.tool_calls: only an assistant calls tools",
            param=f"{name}.tool_calls",
            code="invalid_value",
        )
    return made


def _part(part: Any, name: str) -> Any:
    if isinstance(part, str):
        return {"text": part}
    if not isinstance(part, dict):
        return part
    kind = part.get("type", "text")
    if kind == "refusal":
        return {"text": part.get("refusal")}
    if kind not in _TEXT_TYPES:
        raise RequestError(
            f"{name}.type: only text is supported, not {str(kind)[:40]!r}",
            param=f"{name}.type",
            code="unsupported",
        )
    kept: dict[str, Any] = {}
    for key, value in part.items():
        if value is None or key == "type" or key in _PART_IGNORED or key.startswith("x_"):
            continue
        kept[key] = value
    return kept
