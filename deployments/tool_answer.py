"""Chat answers with calls of tools."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import UNSET

from deployments.answers import ChatAnswer
from deployments.detokenize import TokenTable
from deployments.job import Job
from deployments.outbox import Addition
from deployments.replies import CalledFunction, ChatMessage, Reply, ToolCall, UsageReply
from deployments.tool_reader import Read
from deployments.tools import ToolUse


class ToolAnswer(ChatAnswer):
    """Reads each choice's text for calls, as it comes."""

    def __init__(self, job: Job, table: TokenTable, use: ToolUse) -> None:
        super().__init__(job, table)
        self._readers = {
            choice.index: use.reader(f"{job.id}:{choice.index}")
            for choice in job.choices
        }

    def chunk(self, addition: Addition) -> Reply:
        reply = super().chunk(addition)
        [choice] = reply.choices
        read = self._read(addition, choice.delta)
        choice.delta.content = read.content or UNSET
        calls = [
            ToolCall(
                index=call.index,
                id=call.id or UNSET,
                type=UNSET if call.id is None else "function",
                function=CalledFunction(
                    name=call.name or UNSET, arguments=call.arguments
                ),
            )
            for call in read.calls
        ]
        if calls:
            choice.delta.tool_calls = calls
        choice.finish_reason = self._reason(addition)
        return reply

    def whole(self, additions: Iterable[Addition], usage: UsageReply) -> Reply:
        ordered = list(additions)
        reply = super().whole(ordered, usage)
        for choice, addition in zip(reply.choices, ordered, strict=True):
            thoughts = choice.message.reasoning_content
            choice.message = _whole(self._read(addition, choice.message))
            choice.message.reasoning_content = thoughts
            choice.finish_reason = self._reason(addition)
        return reply

    def _read(self, addition: Addition, said: ChatMessage) -> Read:
        """`said`: what the addition says beside thoughts."""
        reader = self._readers[addition.index]
        read = reader.push(said.content if isinstance(said.content, str) else "")
        if addition.finish_reason is not None:
            read.content += reader.finish().content
        return read

    def _reason(self, addition: Addition) -> str | None:
        called = self._readers[addition.index].calls > 0
        reason = addition.finish_reason
        return "tool_calls" if called and reason == "stop" else reason


def chat_answer(job: Job, table: TokenTable) -> ChatAnswer:
    """How a chat is answered: read for calls where it has tools."""
    return (
        ChatAnswer(job, table)
        if job.tools is None
        else ToolAnswer(job, table, job.tools)
    )


def _whole(read: Read) -> ChatMessage:
    message = ChatMessage(role="assistant", content=read.content)
    calls: list[ToolCall] = []
    for call in read.calls:
        if call.id is None:
            calls[-1].function.arguments += call.arguments
            continue
        function = CalledFunction(name=call.name or "", arguments=call.arguments)
        calls.append(ToolCall(id=call.id, type="function", function=function))
    if calls:
        message.tool_calls = calls
        message.content = read.content or None
    return message
