"""From a chat's replies to Anthropic's Message object and the events of its stream."""

from __future__ import annotations

from typing import Any

import msgspec

from deployments import failures, sse
from deployments.dialects.messages_reply import (
    Block,
    MessageReply,
    MessageUsage,
    StopReason,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
)
from deployments.job import Job
from deployments.replies import ChatMessage, Reply, ToolCall, UsageReply
from medha_actors.errors import MedhaError


class MessagesEvents:
    """One answer. Its blocks grow one after the other: thoughts, text, calls of tools."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._blocks: list[Block] = []
        self._open: Block | None = None
        self._finish_reason: str | None = None
        self._stop: str | int | None = None

    def whole(self, reply: Reply) -> MessageReply:
        [choice] = reply.choices
        self._finish_reason = choice.finish_reason
        self._stop = choice.stop_reason
        said: ChatMessage = choice.message
        if isinstance(said.reasoning_content, str):
            self._blocks.append(ThinkingBlock(thinking=said.reasoning_content))
        if said.content:
            self._blocks.append(TextBlock(text=str(said.content)))
        for call in _calls(said):
            name = str(call.function.name)
            given = _input(call.function.arguments)
            self._blocks.append(ToolUseBlock(id=str(call.id), name=name, input=given))
        assert isinstance(reply.usage, UsageReply)
        message = self._message(reply.usage)
        message.stop_reason, message.stop_sequence = self._ended()
        return message

    def beginning(self, usage: UsageReply) -> bytes:
        started = _event("message_start", message=self._message(usage))
        return started + _event("ping")

    def chunk(self, reply: Reply, event_id: str | None) -> bytes:
        [choice] = reply.choices
        if choice.finish_reason is not None:
            self._finish_reason = choice.finish_reason
            self._stop = choice.stop_reason
        said: ChatMessage = choice.delta
        frames: list[bytes] = []
        if isinstance(said.reasoning_content, str):
            frames.append(self._thoughts(said.reasoning_content))
        if isinstance(said.content, str) and said.content:
            frames.append(self._text(said.content))
        frames += [self._call(call) for call in _calls(said)]
        return b"".join(frames)

    def ending(self, reply: Reply) -> bytes:
        assert isinstance(reply.usage, UsageReply)
        reason, sequence = self._ended()
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        told = _event("message_delta", delta=delta, usage=_usage(reply.usage))
        return self._close() + told + _event("message_stop")

    def failure(self, error: MedhaError) -> bytes:
        return sse.data(failures.anthropic_body(error), event="error")

    def _thoughts(self, text: str) -> bytes:
        begun = b""
        if not isinstance(self._open, ThinkingBlock):
            begun = self._begin(ThinkingBlock())
        return begun + self._delta(type="thinking_delta", thinking=text)

    def _text(self, text: str) -> bytes:
        begun = b""
        if not isinstance(self._open, TextBlock):
            begun = self._begin(TextBlock())
        return begun + self._delta(type="text_delta", text=text)

    def _call(self, call: ToolCall) -> bytes:
        begun = b""
        if isinstance(call.id, str):
            begun = self._begin(ToolUseBlock(id=call.id, name=str(call.function.name)))
        text = call.function.arguments
        return begun + (
            self._delta(type="input_json_delta", partial_json=text) if text else b""
        )

    def _begin(self, block: Block) -> bytes:
        closed = self._close()
        self._blocks.append(block)
        self._open = block
        index = len(self._blocks) - 1
        return closed + _event("content_block_start", index=index, content_block=block)

    def _delta(self, **delta: str) -> bytes:
        return _event("content_block_delta", index=len(self._blocks) - 1, delta=delta)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event("content_block_stop", index=len(self._blocks) - 1)

    def _ended(self) -> tuple[StopReason, str | None]:
        if self._finish_reason == "length":
            return self._cut(), None
        if self._finish_reason == "tool_calls":
            return "tool_use", None
        if isinstance(self._stop, str):
            return "stop_sequence", self._stop
        return "end_turn", None

    def _cut(self) -> StopReason:
        [choice] = self._job.choices
        asked = self._job.body.max_completion_tokens
        less = asked is not None and choice.request.sampling.max_tokens < asked
        return "model_context_window_exceeded" if less else "max_tokens"

    def _message(self, usage: UsageReply) -> MessageReply:
        job = self._job
        return MessageReply(
            id=job.id, model=job.model, content=self._blocks, usage=_usage(usage)
        )


def _calls(said: ChatMessage) -> list[ToolCall]:
    return said.tool_calls if isinstance(said.tool_calls, list) else []


def _input(arguments: str) -> dict[str, Any]:
    """Arguments as an object; of a call that was cut, what cannot be read is not there."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _usage(usage: UsageReply) -> MessageUsage:
    cached = usage.prompt_tokens_details.cached_tokens
    return MessageUsage(
        input_tokens=usage.prompt_tokens - cached,
        cache_read_input_tokens=cached,
        output_tokens=usage.completion_tokens,
    )


def _event(kind: str, **fields: Any) -> bytes:
    return sse.data({"type": kind, **fields}, event=kind)
