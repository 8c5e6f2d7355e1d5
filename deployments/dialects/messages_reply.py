"""Anthropic's Message object and its content, as its clients read them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

StopReason = Literal[
    "end_turn",
    "max_tokens",
    "model_context_window_exceeded",
    "stop_sequence",
    "tool_use",
]


class _Reply(msgspec.Struct, kw_only=True):
    """A JSON object."""


class TextBlock(_Reply, kw_only=True, tag_field="type", tag="text"):
    text: str = ""


class ThinkingBlock(_Reply, kw_only=True, tag_field="type", tag="thinking"):
    """`signature` would be the proof that the thoughts are the server's own."""

    thinking: str = ""
    signature: str = ""


class ToolUseBlock(_Reply, kw_only=True, tag_field="type", tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any] = {}


Block = TextBlock | ThinkingBlock | ToolUseBlock


class MessageUsage(_Reply, kw_only=True):
    """`input_tokens`: those that were computed; those that the prefix cache saved stand beside
    them."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int


class MessageReply(_Reply, kw_only=True):
    """One answer."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[Block]
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessageUsage


class CountReply(_Reply, kw_only=True):
    """The tokens of a prompt."""

    input_tokens: int
