"""POST /v1/responses: what clients may send, and which chat it asks for.

Nothing is stored: an answer is not found again by its id, so each request brings its history.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, field

from deployments import protocol
from deployments.decoding import Beside, converted
from deployments.dialects import asked
from deployments.histories import Message, ShortText
from deployments.protocol import ChatBody, Count, SampledBody
from deployments.structure import JsonSchema, ResponseFormat, Schema
from deployments.tool_fields import Function, NamedFunction, NamedTool, Tool, ToolChoice
from medha_actors.errors import RequestError

# The chat's fields by the names they have here.
NAMES: Final = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
}
BESIDE: Final = Beside(
    frozenset(
        {
            "max_tool_calls", "moderation", "prompt_cache_options", "prompt_cache_retention",
            "safety_identifier", "service_tier", "store", "stream_options", "user",
        }
    ),
    {
        "background": (False,),
        "context_management": ([],),
        "conversation": (),
        "previous_response_id": (),
        "prompt": (),
        "truncation": ("disabled",),
    },
)  # fmt: skip
_TEXT_KEYS: Final = ("type", "text", "refusal")


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A JSON object in a body."""


class TextFormat(_Part, frozen=True, kw_only=True):
    """What the text must look like."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: ShortText | None = None
    description: str | None = None
    schema: Schema | None = None
    strict: bool | None = None

    def as_chat(self) -> ResponseFormat | None:
        """The same in a chat; None: it may look like anything."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return ResponseFormat(type="json_object")
        wrapped = JsonSchema(name=self.name, schema=self.schema, strict=self.strict)
        return ResponseFormat(type="json_schema", json_schema=wrapped)


class TextOptions(_Part, frozen=True, kw_only=True):
    """`verbosity` is a wish that no model here knows of."""

    format: TextFormat = TextFormat()
    verbosity: ShortText | None = None


class Reasoning(_Part, frozen=True, kw_only=True):
    """`summary`: there are none; thoughts are told whole."""

    effort: ShortText | None = None
    summary: ShortText | None = None
    generate_summary: ShortText | None = None


class ResponsesBody(SampledBody, frozen=True, kw_only=True):
    """POST /v1/responses."""

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    text: TextOptions = TextOptions()
    reasoning: Reasoning = Reasoning()
    max_output_tokens: Count | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] = 0
    include: list[ShortText] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    chat_template_kwargs: dict[str, bool | int | float | ShortText] = field(
        default_factory=dict
    )

    def chat(self) -> ChatBody:
        """Raises RequestError."""
        logprobs = (
            self.top_logprobs > 0 or "message.output_text.logprobs" in self.include
        )
        return ChatBody(
            messages=self._messages(),
            max_completion_tokens=self.max_output_tokens,
            tools=[_tool(tool, f"tools[{i}]") for i, tool in enumerate(self.tools)],
            tool_choice=_choice(self.tool_choice) if self.tools else None,
            parallel_tool_calls=self.parallel_tool_calls,
            response_format=self.text.format.as_chat(),
            reasoning_effort=self.reasoning.effort,
            logprobs=logprobs,
            top_logprobs=self.top_logprobs,
            chat_template_kwargs=self.chat_template_kwargs,
            **asked.sampled(self),
        )

    def _messages(self) -> list[Message]:
        history = _History()
        if self.instructions is not None:
            history.add(
                {"role": "system", "content": self.instructions}, "instructions"
            )
        if isinstance(self.input, str):
            history.add({"role": "user", "content": self.input}, "input")
            return history.messages()
        for i, item in enumerate(self.input):
            history.item(item, f"input[{i}]")
        return history.messages()


def decode(body: bytes) -> ResponsesBody:
    """Raises RequestError."""
    return protocol.decode(body, ResponsesBody, BESIDE)


class _History:
    """From items to turns: what an assistant thought, said and called is one turn."""

    def __init__(self) -> None:
        # and the name of what began each
        self._turns: list[tuple[str, dict[str, Any]]] = []
        self._thoughts: str | None = None  # of the turn that follows

    def add(self, turn: dict[str, Any], name: str) -> None:
        self._turns.append((name, turn))

    def messages(self) -> list[Message]:
        return [asked.message(turn, name) for name, turn in self._turns]

    def item(self, item: dict[str, Any], name: str) -> None:
        """Raises RequestError."""
        kind = item.get("type") or "message"
        if kind == "message":
            self._message(item, name)
        elif kind == "function_call":
            self._call(item, name)
        elif kind == "function_call_output":
            turn = {
                "role": "tool",
                "tool_call_id": item.get("call_id"),
                "content": _content(item.get("output"), f"{name}.output"),
            }
            self.add(turn, name)
        elif kind == "reasoning":
            self._thoughts = _thoughts(item.get("content"))
        else:
            raise asked.unsupported(
                f"{name}.type", f"there are no items {str(kind)[:40]!r} here"
            )

    def _message(self, item: dict[str, Any], name: str) -> None:
        turn: dict[str, Any] = {
            "content": _content(item.get("content"), f"{name}.content")
        }
        if "role" in item:
            turn["role"] = item["role"]
        if turn.get("role") == "assistant":
            turn["reasoning_content"] = self._taken()
        self.add(turn, name)

    def _call(self, item: dict[str, Any], name: str) -> None:
        function = {
            key: item[key] for key in ("name", "arguments") if item.get(key) is not None
        }
        call = {"id": item.get("call_id"), "function": function}
        last = self._turns[-1][1] if self._turns else {}
        if last.get("role") != "assistant":
            last = {"role": "assistant", "reasoning_content": self._taken()}
            self.add(last, name)
        last.setdefault("tool_calls", []).append(call)

    def _taken(self) -> str | None:
        thoughts = self._thoughts
        self._thoughts = None
        return thoughts


def _thoughts(content: Any) -> str | None:
    """What a reasoning item says, if that is not hidden."""
    parts = content if isinstance(content, list) else []
    texts = [str(part.get("text", "")) for part in parts if isinstance(part, dict)]
    return "\n".join(texts) or None


def _content(content: Any, name: str) -> Any:
    """Parts without what says nothing to a model."""
    if not isinstance(content, list):
        return content
    parts: list[Any] = []
    for part in content:
        if isinstance(part, dict):
            part = {key: part[key] for key in _TEXT_KEYS if key in part}
        parts.append(part)
    return parts


def _tool(tool: dict[str, Any], name: str) -> Tool:
    kind = tool.get("type", "function")
    if kind != "function":
        raise asked.unsupported(
            f"{name}.type", f"there are only functions, no {str(kind)[:40]!r}"
        )
    given = {
        key: value for key, value in tool.items() if value is not None and key != "type"
    }
    return Tool(function=converted(given, Function, name))


def _choice(choice: str | dict[str, Any]) -> ToolChoice:
    if choice in ("none", "auto", "required"):
        return choice  # type: ignore[return-value]  # one of the words just named
    if isinstance(choice, dict) and choice.get("type") == "function":
        name = converted({"name": choice.get("name")}, NamedFunction, "tool_choice")
        return NamedTool(function=name)
    if isinstance(choice, dict):
        raise asked.unsupported("tool_choice.type", "only a function can be asked for")
    raise RequestError(
        "tool_choice must be none, auto, required or a function",
        param="tool_choice",
        code="invalid_value",
    )
