"""Chats as agents keep them: answers without text that call tools, turns of tools, refusals, text
in several parts. What only text can say is accepted; an image is refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, get_args

import msgspec
from msgspec import Meta

from deployments.decoding import Beside, converted, known
from medha_actors.errors import RequestError

ShortText = Annotated[str, Meta(max_length=256)]
PartType = Literal["text", "input_text", "output_text", "refusal"]
_TURN_CHARS: Final = 50  # what a turn costs beside its text


class ContentPart(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of text."""

    text: str


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


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One turn of a chat. `developer` is what newer OpenAI clients call `system`."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] = ""
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
        called = [
            len(call.function.name) + call.function.chars for call in self.tool_calls
        ]
        return (
            len(self.text)
            + len(self.reasoning_content or "")
            + sum(called)
            + _TURN_CHARS
        )


class SentPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A piece of text as clients write it."""

    type: PartType = "text"
    text: str | None = None
    refusal: str | None = None


class SentMessage(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True
):
    """One turn of a chat. `function` and `function_call` are older words for tools, `reasoning` is
    another one for `reasoning_content`."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[str | SentPart] | None = None
    name: ShortText | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None
    tool_call_id: ShortText | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None


# What clients send back of an answer, or keep beside it, that says nothing to the model.
BESIDE: Final = Beside(
    frozenset(
        {
            "annotations", "cache_control", "id", "metadata", "parsed", "provider_specific_fields",
            "reasoning_details", "status", "thinking_blocks", "weight",
        }
    ),
    {},
)  # fmt: skip
PART_BESIDE: Final = Beside(
    frozenset(
        {"annotations", "cache_control", "citations", "id", "prompt_cache_breakpoint"}
    ),
    {},
)
CALLER: Final = "assistant"  # whose turns may call tools
# Whose turns may be without a text.
MAY_BE_EMPTY: Final = (CALLER, "tool", "function")


def message(given: Any, name: str) -> Message:
    """A turn of any accepted shape; raises RequestError. `name`: its path in the body."""
    if not isinstance(given, dict):
        return _turn(converted(given, SentMessage, name), name)
    tree = known(given, SentMessage, BESIDE, name)
    parts = tree.get("content")
    if isinstance(parts, list):
        tree["content"] = [
            _part(part, f"{name}.content[{i}]") for i, part in enumerate(parts)
        ]
    return _turn(converted(tree, SentMessage, name), name)


def _turn(sent: SentMessage, name: str) -> Message:
    calls = sent.tool_calls or []
    if sent.function_call is not None:
        calls = [ToolCall(function=sent.function_call)]
    if calls and sent.role != CALLER:
        raise _wrong(f"{name}.tool_calls", "only an assistant calls tools")
    if sent.content is None and sent.refusal is None and sent.role not in MAY_BE_EMPTY:
        raise _wrong(f"{name}.content", "is missing", "missing_field")
    thoughts = (
        sent.reasoning if sent.reasoning_content is None else sent.reasoning_content
    )
    return Message(
        role="tool" if sent.role == "function" else sent.role,
        content=_content(sent),
        name=sent.name,
        tool_calls=calls,
        tool_call_id=sent.tool_call_id,
        reasoning_content=thoughts,
    )


def _content(sent: SentMessage) -> str | list[ContentPart]:
    if not isinstance(sent.content, list):
        return sent.content or sent.refusal or ""
    return [ContentPart(text=_said(part)) for part in sent.content]


def _said(part: str | SentPart) -> str:
    if isinstance(part, str):
        return part
    return (part.refusal if part.type == "refusal" else part.text) or ""


def _part(part: Any, name: str) -> Any:
    """A part without what says nothing to a model; an image is refused by name."""
    if not isinstance(part, dict):
        return part
    kind = part.get("type") or "text"
    if kind not in get_args(PartType):
        raise _wrong(
            f"{name}.type",
            f"only text is supported, not {str(kind)[:40]!r}",
            "unsupported",
        )
    kept = known(part, SentPart, PART_BESIDE, name)
    field = "refusal" if kind == "refusal" else "text"
    if field not in kept:
        raise _wrong(f"{name}.{field}", "is missing", "missing_field")
    return kept


def _wrong(name: str, what: str, code: str = "invalid_value") -> RequestError:
    return RequestError(f"{name}: {what}", param=name, code=code)
