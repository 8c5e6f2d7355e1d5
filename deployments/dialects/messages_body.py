"""POST /v1/messages, Anthropic's API: what clients may send, and which chat it asks for."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from msgspec import field

from deployments import protocol
from deployments.decoding import Beside, converted
from deployments.dialects import asked, messages_history
from deployments.dialects.messages_history import Turn
from deployments.histories import ShortText
from deployments.protocol import ChatBody, Count, SampledBody
from deployments.structure import JsonSchema, ResponseFormat, Schema
from deployments.tool_fields import (
    Function,
    NamedFunction,
    NamedTool,
    Tool,
    ToolChoice,
    ToolName,
)

# The chat's fields by the names they have here.
NAMES: Final = {
    "max_completion_tokens": "max_tokens",
    "reasoning_effort": "output_config.effort",
    "response_format": "output_config.format",
    "response_format.json_schema": "output_config.format",
    "stop": "stop_sequences",
}
BESIDE: Final = Beside(
    frozenset(
        {
            "betas", "cache_control", "diagnostics", "inference_geo", "metadata", "service_tier",
            "speed", "user_profile_id", "workspace_id",
        }
    ),
    {"container": (), "mcp_servers": ([],), "thread": ()},
)  # fmt: skip
_FUNCTION_KEYS: Final = ("name", "description", "strict")


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A JSON object in a body."""


class AnthropicChoice(_Part, frozen=True, kw_only=True):
    """Whether tools are called, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = None
    disable_parallel_tool_use: bool | None = None

    def as_chat(self) -> ToolChoice:
        if self.type == "tool":
            named = converted({"name": self.name}, NamedFunction, "tool_choice")
            return NamedTool(function=named)
        return "required" if self.type == "any" else self.type


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the model may think before it answers; how much is its own affair."""

    type: Literal["enabled", "disabled", "adaptive"]


class OutputFormat(_Part, frozen=True, kw_only=True):
    """JSON of a schema."""

    type: Literal["json_schema"]
    schema: Schema


class OutputConfig(_Part, frozen=True, kw_only=True):
    """`effort`: for templates that know of it; others are not told."""

    effort: ShortText | None = None
    format: OutputFormat | None = None


class ContextManagement(_Part, frozen=True, kw_only=True):
    """What may be left out of a long history. Whether old thoughts are is the template's affair."""

    edits: list[dict[str, Any]] = field(default_factory=list)


class CountBody(SampledBody, frozen=True, kw_only=True):
    """POST /v1/messages/count_tokens: a prompt."""

    messages: list[Turn]
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: AnthropicChoice = AnthropicChoice(type="auto")
    thinking: Thinking | None = None
    output_config: OutputConfig = OutputConfig()
    context_management: ContextManagement = ContextManagement()
    chat_template_kwargs: dict[str, bool | int | float | ShortText] = field(
        default_factory=dict
    )

    def chat(self, takes_effort: bool) -> ChatBody:
        """`takes_effort`: the model's template does. Raises RequestError."""
        return ChatBody(**self._chat_fields(takes_effort))

    def _chat_fields(self, takes_effort: bool) -> dict[str, Any]:
        self._check_edits()
        messages = messages_history.messages(self.system, self.messages)
        continued = bool(messages) and messages[-1].role == "assistant"
        effort = self.output_config.effort if takes_effort else None
        tools = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(self.tools)]
        return {
            **asked.sampled(self),
            "messages": messages,
            # The answer goes on with what its author puts into the assistant's mouth.
            "continue_final_message": continued and not messages[-1].tool_calls,
            "tools": tools,
            "tool_choice": self.tool_choice.as_chat() if tools else None,
            "parallel_tool_calls": not self.tool_choice.disable_parallel_tool_use,
            "response_format": self._format(),
            "reasoning_effort": effort,
            "chat_template_kwargs": {**self._thinking(), **self.chat_template_kwargs},
        }

    def _format(self) -> ResponseFormat | None:
        wanted = self.output_config.format
        if wanted is None:
            return None
        schema = JsonSchema(schema=wanted.schema, strict=True)
        return ResponseFormat(type="json_schema", json_schema=schema)

    def _thinking(self) -> dict[str, bool]:
        """In the words of templates where thinking can be switched."""
        return (
            {}
            if self.thinking is None
            else {"enable_thinking": self.thinking.type != "disabled"}
        )

    def _check_edits(self) -> None:
        for i, edit in enumerate(self.context_management.edits):
            kind = str(edit.get("type"))
            if not kind.startswith("clear_thinking"):
                name = f"context_management.edits[{i}].type"
                raise asked.unsupported(name, f"there is no {kind[:40]!r} here")


class MessagesBody(CountBody, frozen=True, kw_only=True):
    """POST /v1/messages."""

    max_tokens: Count
    stop_sequences: list[str] = field(default_factory=list)

    def chat(self, takes_effort: bool) -> ChatBody:
        fields = self._chat_fields(takes_effort)
        return ChatBody(
            max_completion_tokens=self.max_tokens, stop=self.stop_sequences, **fields
        )


def decode(body: bytes) -> MessagesBody:
    """Raises RequestError."""
    return protocol.decode(body, MessagesBody, BESIDE)


def decode_count(body: bytes) -> CountBody:
    """Raises RequestError."""
    return protocol.decode(body, CountBody, BESIDE)


def _tool(tool: dict[str, Any], name: str) -> Tool:
    kind = tool.get("type") or "custom"
    if kind != "custom":
        raise asked.unsupported(
            f"{name}.type", f"this server has no {str(kind)[:40]!r}"
        )
    given = {key: tool[key] for key in _FUNCTION_KEYS if tool.get(key) is not None}
    if tool.get("input_schema") is not None:
        schema = tool["input_schema"]
        if not isinstance(schema, dict):
            raise asked.wrong(f"{name}.input_schema", "must be an object")
        given["parameters"] = schema
    return Tool(function=converted(given, Function, name))
