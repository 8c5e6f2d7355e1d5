"""From a chat's replies to OpenAI's Response object and the events of its stream."""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec

from deployments import sse
from deployments.dialects.responses_body import ResponsesBody, TextOptions
from deployments.dialects.responses_reply import (
    IncompleteDetails,
    InputDetails,
    Item,
    OutputCall,
    OutputDetails,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ResponseError,
    ResponseReply,
    ResponseUsage,
    Said,
    Status,
)
from deployments.job import Job
from deployments.replies import ChatLogprob, ChatMessage, Reply, ToolCall, UsageReply
from medha_actors.errors import MedhaError

_CODES: Final = {400: "invalid_prompt", 429: "rate_limit_exceeded"}


class ResponsesEvents:
    """One answer. Its items grow one after the other: thoughts, text, calls of tools."""

    def __init__(self, job: Job, body: ResponsesBody) -> None:
        self._job = job
        self._body = body
        self._unique = job.id.removeprefix("resp_")
        self._items: list[Item] = []
        self._open: Item | None = None
        self._number = 0  # of the next event
        self._finish_reason: str | None = None

    def whole(self, reply: Reply) -> ResponseReply:
        [choice] = reply.choices
        self._take(choice.message, choice.logprobs.content if choice.logprobs else [])
        self._finish_reason = choice.finish_reason
        self._finish()
        assert isinstance(reply.usage, UsageReply)
        return self._response(self._status, _usage(reply.usage))

    def beginning(self, usage: UsageReply) -> bytes:
        return b"".join(
            [
                self._event("response.created", response=self._response("in_progress")),
                self._event(
                    "response.in_progress", response=self._response("in_progress")
                ),
            ]
        )

    def chunk(self, reply: Reply, event_id: str | None) -> bytes:
        [choice] = reply.choices
        self._finish_reason = choice.finish_reason or self._finish_reason
        return self._take(
            choice.delta, choice.logprobs.content if choice.logprobs else []
        )

    def ending(self, reply: Reply) -> bytes:
        last = self._finish()
        assert isinstance(reply.usage, UsageReply)
        response = self._response(self._status, _usage(reply.usage))
        return last + self._event(f"response.{self._status}", response=response)

    def failure(self, error: MedhaError) -> bytes:
        """What there is of the answer, and what went wrong."""
        code = _CODES.get(error.status, "server_error")
        response = self._response("failed")
        response.error = ResponseError(code=code, message=error.message)
        return self._event("response.failed", response=response)

    @property
    def _status(self) -> Status:
        return "incomplete" if self._finish_reason == "length" else "completed"

    def _take(self, said: ChatMessage, logprobs: list[ChatLogprob]) -> bytes:
        """The events of a message, or of a piece of one."""
        frames: list[bytes] = []
        if isinstance(said.reasoning_content, str):
            frames.append(self._thoughts(said.reasoning_content))
        if isinstance(said.content, str) and said.content:
            frames.append(self._text(said.content, logprobs))
        calls = said.tool_calls if isinstance(said.tool_calls, list) else []
        frames += [self._call(call) for call in calls]
        return b"".join(frames)

    def _thoughts(self, text: str) -> bytes:
        begun = b""
        if not isinstance(self._open, OutputReasoning):
            begun = self._begin_to_say(OutputReasoning(id=self._id("rs")))
        return begun + self._say(text)

    def _text(self, text: str, logprobs: list[ChatLogprob]) -> bytes:
        begun = b""
        if not isinstance(self._open, OutputMessage):
            begun = self._begin_to_say(OutputMessage(id=self._id("msg")))
        return begun + self._say(text, logprobs)

    def _begin_to_say(self, item: Said) -> bytes:
        begun = self._close() + self._begin(item)
        part = item.begin()
        return begun + self._part_event("response.content_part.added", part=part)

    def _say(self, text: str, logprobs: list[ChatLogprob] | None = None) -> bytes:
        """More text in the open item; texts of answers have log-probabilities."""
        item = self._open
        assert isinstance(item, Said)
        [part] = item.content
        part.text += text
        delta: dict[str, Any] = {"delta": text}
        if isinstance(part, OutputText):
            delta["logprobs"] = logprobs or []
            part.logprobs = [*part.logprobs, *delta["logprobs"]]
        return self._part_event(f"response.{part.type}.delta", **delta)

    def _call(self, call: ToolCall) -> bytes:
        begun = b""
        if isinstance(call.id, str):
            name = str(call.function.name)
            item = OutputCall(id=self._id("fc"), call_id=call.id, name=name)
            begun = self._close() + self._begin(item)
        opened = self._open
        assert isinstance(opened, OutputCall)
        text = call.function.arguments
        if not text:
            return begun
        opened.arguments += text
        return begun + self._item_event(
            "response.function_call_arguments.delta", delta=text
        )

    def _begin(self, item: Item) -> bytes:
        self._items.append(item)
        self._open = item
        index = len(self._items) - 1
        return self._event("response.output_item.added", output_index=index, item=item)

    def _finish(self) -> bytes:
        """Close the last item; an answer that said nothing says an empty text."""
        nothing = b"" if self._items else self._text("", [])
        return nothing + self._close(self._status)

    def _close(self, status: Status = "completed") -> bytes:
        item = self._open
        if item is None:
            return b""
        done = self._done(item)
        item.status = status
        index = len(self._items) - 1
        self._open = None
        return done + self._event(
            "response.output_item.done", output_index=index, item=item
        )

    def _done(self, item: Item) -> bytes:
        """That what is in the open item is whole."""
        if isinstance(item, OutputCall):
            called = {"name": item.name, "arguments": item.arguments}
            return self._item_event("response.function_call_arguments.done", **called)
        [part] = item.content
        said: dict[str, Any] = {"text": part.text}
        if isinstance(part, OutputText):
            said["logprobs"] = part.logprobs
        told = self._part_event(f"response.{part.type}.done", **said)
        return told + self._part_event("response.content_part.done", part=part)

    def _part_event(self, kind: str, **fields: Any) -> bytes:
        """About the only part of the open item."""
        return self._item_event(kind, content_index=0, **fields)

    def _item_event(self, kind: str, **fields: Any) -> bytes:
        """About the open item, which is the last one."""
        index = len(self._items) - 1
        return self._event(
            kind, item_id=self._items[index].id, output_index=index, **fields
        )

    def _event(self, kind: str, **fields: Any) -> bytes:
        told = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return sse.data(told, event=kind)

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._unique}_{len(self._items)}"

    def _response(
        self, status: Status, usage: ResponseUsage | None = None
    ) -> ResponseReply:
        body = self._body
        reasoning = body.reasoning
        limit = body.max_output_tokens
        return ResponseReply(
            id=self._job.id,
            created_at=self._job.created,
            status=status,
            completed_at=int(time.time()) if status == "completed" else None,
            incomplete_details=IncompleteDetails() if status == "incomplete" else None,
            instructions=body.instructions,
            max_output_tokens=limit,
            metadata=body.metadata,
            model=self._job.model,
            output=self._items,
            parallel_tool_calls=body.parallel_tool_calls,
            reasoning={"effort": reasoning.effort, "summary": reasoning.summary},
            temperature=body.temperature,
            text=_text(body.text),
            tool_choice=body.tool_choice,
            tools=body.tools,
            top_logprobs=body.top_logprobs,
            top_p=body.top_p,
            usage=usage,
        )


def _text(asked: TextOptions) -> dict[str, Any]:
    format = msgspec.to_builtins(asked.format)
    given = {name: value for name, value in format.items() if value is not None}
    return {"format": given, "verbosity": asked.verbosity}


def _usage(usage: UsageReply) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputDetails(
            cached_tokens=usage.prompt_tokens_details.cached_tokens
        ),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputDetails(),
        total_tokens=usage.total_tokens,
    )
