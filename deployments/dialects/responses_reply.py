"""The Response object and its items, as OpenAI's clients read them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from deployments.replies import ChatLogprob

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class _Reply(msgspec.Struct, kw_only=True):
    """A JSON object."""


class OutputText(_Reply, kw_only=True):
    type: Literal["output_text"] = "output_text"
    text: str = ""
    annotations: list[Any] = []
    logprobs: list[ChatLogprob] = []


class ReasoningText(_Reply, kw_only=True):
    type: Literal["reasoning_text"] = "reasoning_text"
    text: str = ""


class OutputMessage(_Reply, kw_only=True, tag_field="type", tag="message"):
    id: str
    role: Literal["assistant"] = "assistant"
    status: Status = "in_progress"
    content: list[OutputText] = []

    def begin(self) -> OutputText:
        """Its only part, which grows."""
        self.content = [OutputText()]
        return self.content[0]


class OutputCall(_Reply, kw_only=True, tag_field="type", tag="function_call"):
    id: str
    call_id: str
    name: str
    arguments: str = ""
    status: Status = "in_progress"


class OutputReasoning(_Reply, kw_only=True, tag_field="type", tag="reasoning"):
    id: str
    summary: list[Any] = []
    content: list[ReasoningText] = []
    status: Status = "in_progress"

    def begin(self) -> ReasoningText:
        """Its only part, which grows."""
        self.content = [ReasoningText()]
        return self.content[0]


Said = OutputMessage | OutputReasoning
Item = Said | OutputCall


class InputDetails(_Reply, kw_only=True):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputDetails(_Reply, kw_only=True):
    reasoning_tokens: int = 0


class ResponseUsage(_Reply, kw_only=True):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class InputCount(_Reply, kw_only=True):
    """The tokens of a prompt."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


class IncompleteDetails(_Reply, kw_only=True):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseError(_Reply, kw_only=True):
    code: str
    message: str


class ResponseReply(_Reply, kw_only=True):
    """One response: what was asked, and what has come of it."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    background: bool = False
    completed_at: int | None = None
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None = None
    metadata: dict[str, Any]
    model: str
    output: list[Item]
    parallel_tool_calls: bool
    previous_response_id: str | None = None
    reasoning: dict[str, str | None]
    service_tier: str = "default"
    store: bool = False
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: str = "disabled"
    usage: ResponseUsage | None = None
