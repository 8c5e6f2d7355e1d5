"""What the server answers: OpenAI's response bodies as Structs. Absent fields are left out of the
JSON."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType


class _Reply(msgspec.Struct, kw_only=True):
    """A JSON object."""


class TimingReply(_Reply, kw_only=True):
    """Our extension of `usage`: what was promised and what happened, in milliseconds since
    arrival."""

    ttft_deadline_ms: float
    predicted_ttft_ms: float
    ttft_ms: float | UnsetType = UNSET
    queue_ms: float | UnsetType = UNSET
    preemptions: int | UnsetType = UNSET
    ttft_met: bool | UnsetType = UNSET


class PromptTokensDetails(_Reply, kw_only=True):
    cached_tokens: int


class UsageReply(_Reply, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    medha: TimingReply | UnsetType = UNSET


class TextLogprobs(_Reply, kw_only=True):
    """Log-probabilities in the completions API: parallel lists, one entry for each token."""

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []
    text_offset: list[int] = []


class TopLogprob(_Reply, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob, kw_only=True):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Reply, kw_only=True):
    content: list[ChatLogprob]
    refusal: None = None


class KnownToken(_Reply, kw_only=True):
    """A token of a prompt, or one that could have stood there; as in vLLM."""

    logprob: float
    rank: int | None  # 1: the likeliest; None: not among those that were asked for
    decoded_token: str


class TextChoice(_Reply, kw_only=True):
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[str, KnownToken] | None] | UnsetType = UNSET


class CalledFunction(_Reply, kw_only=True):
    name: str | UnsetType = UNSET
    arguments: str = ""


class ToolCall(_Reply, kw_only=True):
    """A call of a tool, or a delta of one (with `index`; id, type and name come first)."""

    index: int | UnsetType = UNSET
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: CalledFunction


class ChatMessage(_Reply, omit_defaults=True, kw_only=True):
    """A whole message, or a delta of one."""

    role: Literal["assistant"] | None = None
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(_Reply, kw_only=True):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatDelta(_Reply, kw_only=True):
    index: int
    delta: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET


class Reply(_Reply, kw_only=True):
    """The body of a completion, or one chunk of it."""

    id: str
    object: Literal["text_completion", "chat.completion", "chat.completion.chunk"]
    created: int
    model: str
    choices: list[Any]
    usage: UsageReply | UnsetType | None = UNSET
    # of a chat's one prompt
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[dict[str, KnownToken] | None] | UnsetType = UNSET


class ModelReply(_Reply, kw_only=True):
    """As OpenAI has it, with vLLM's fields; then what Anthropic's clients read."""

    id: str
    created: int
    root: str
    max_model_len: int
    object: Literal["model"] = "model"
    owned_by: str = "medha"
    parent: str | None = None
    type: Literal["model"] = "model"
    display_name: str
    created_at: str  # RFC 3339
    lifecycle: Literal["active"] = "active"
    max_input_tokens: int
    max_tokens: int


class ModelList(_Reply, kw_only=True):
    """The same for both; there is no second page."""

    data: list[ModelReply]
    object: Literal["list"] = "list"
    first_id: str
    last_id: str
    has_more: bool = False


class TokenizeReply(_Reply, kw_only=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeReply(_Reply, kw_only=True):
    prompt: str


class HealthReply(_Reply, kw_only=True):
    status: Literal["ok"] = "ok"


class VersionReply(_Reply, kw_only=True):
    version: str


class LoadReply(_Reply, kw_only=True):
    """Requests that are being answered by the replica that was asked."""

    server_load: int


class TokenizerInfoReply(_Reply, kw_only=True):
    """Named as in a Hugging Face tokenizer_config.json; null: the model has none."""

    eos_token: str | None
    bos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None
    model_max_length: int


class ErrorDetail(_Reply, kw_only=True):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(_Reply, kw_only=True):
    error: ErrorDetail


class AnthropicDetail(_Reply, kw_only=True):
    type: str
    message: str
    details: dict[str, Any] | UnsetType = UNSET


class AnthropicError(_Reply, kw_only=True):
    """What Anthropic's clients expect instead."""

    type: Literal["error"] = "error"
    error: AnthropicDetail
