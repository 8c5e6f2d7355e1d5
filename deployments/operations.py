"""Every route that a server may have, as /openapi.json tells of it: one row each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import msgspec

from deployments import failures, protocol, replies
from deployments.decoding import Beside
from deployments.dialects import messages_body, responses_body
from deployments.dialects.messages_body import CountBody, MessagesBody
from deployments.dialects.messages_reply import CountReply, MessageReply
from deployments.dialects.responses_body import ResponsesBody
from deployments.dialects.responses_reply import InputCount, ResponseReply
from deployments.protocol import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
Struct = type[msgspec.Struct]


@dataclass(frozen=True, slots=True)
class Operation:
    """One path, with the methods it answers."""

    path: str
    summary: str
    methods: tuple[str, ...] = ("GET",)
    body: Struct | None = None
    reply: Struct | None = None  # of JSON; None: anything
    choice: Struct | None = None  # what `choices` of the reply holds
    media: tuple[str, ...] = (JSON,)
    status: int = 200
    key: bool = True  # needs an API key where the server has some
    query: tuple[
        tuple[str, dict[str, object]], ...
    ] = ()  # parameters and their schemas
    beside: Beside = protocol.BESIDE  # what a body may have beside its fields

    @property
    def error(self) -> Struct:
        """What its errors look like."""
        return failures.reply_at(self.path)


_POST: Final = ("POST",)
_ROWS: Final = (
    Operation(
        "/v1/completions",
        "Complete a prompt, or several",
        _POST,
        CompletionBody,
        replies.Reply,
        replies.TextChoice,
        (JSON, EVENTS),
    ),
    Operation(
        "/v1/chat/completions",
        "Answer a chat",
        _POST,
        ChatBody,
        replies.Reply,
        replies.ChatChoice,
        (JSON, EVENTS),
    ),
    Operation(
        "/v1/responses",
        "Answer a chat, in OpenAI's newer words; nothing is stored",
        _POST,
        ResponsesBody,
        ResponseReply,
        beside=responses_body.BESIDE,
        media=(JSON, EVENTS),
    ),
    Operation(
        "/v1/responses/input_tokens",
        "How many tokens the prompt of such a chat has",
        _POST,
        ResponsesBody,
        InputCount,
        beside=responses_body.BESIDE,
    ),
    Operation(
        "/v1/messages",
        "Answer a chat, in the words of Anthropic's API",
        _POST,
        MessagesBody,
        MessageReply,
        beside=messages_body.BESIDE,
        media=(JSON, EVENTS),
    ),
    Operation(
        "/v1/messages/count_tokens",
        "How many tokens the prompt of such a chat has",
        _POST,
        CountBody,
        CountReply,
        beside=messages_body.BESIDE,
    ),
    Operation("/v1/models", "The model served, as a list", reply=replies.ModelList),
    Operation("/v1/models/{model}", "The model served", reply=replies.ModelReply),
    Operation(
        "/tokenize", "Text to token ids", _POST, TokenizeBody, replies.TokenizeReply
    ),
    Operation(
        "/detokenize",
        "Token ids to text",
        _POST,
        DetokenizeBody,
        replies.DetokenizeReply,
    ),
    Operation(
        "/tokenizer_info",
        "Special tokens and the chat template",
        reply=replies.TokenizerInfoReply,
    ),
    Operation(
        "/health",
        "Whether requests are served now",
        reply=replies.HealthReply,
        key=False,
    ),
    Operation(
        "/ping",
        "The same as /health",
        ("GET", "POST"),
        reply=replies.HealthReply,
        key=False,
    ),
    Operation("/version", "The version of this server", reply=replies.VersionReply),
    Operation("/load", "Requests being answered now", reply=replies.LoadReply),
    Operation("/metrics", "Figures for Prometheus", media=("text/plain",)),
    Operation("/openapi.json", "This description"),
    Operation(
        "/", "Leads to the live page, or to this description", media=(), status=307
    ),
    Operation("/favicon.ico", "The icon of the pages", media=("image/svg+xml",)),
    Operation("/medha", "The live page", media=("text/html",)),
    Operation("/medha/live", "What the live page shows, as events", media=(EVENTS,)),
    Operation(
        "/medha/timelines",
        "The last requests as a Perfetto file",
        query=(("last", {"type": "integer", "minimum": 0, "maximum": 999_999_999}),),
    ),
    Operation(
        "/medha/trace/{name}",
        "Where one request's time went",
        query=(("format", {"type": "string", "enum": ["perfetto", "timeline"]}),),
    ),
)
_BY_PATH: Final = {row.path: row for row in _ROWS}
WITH_BODY: Final = frozenset({row.path for row in _ROWS if row.body is not None})
_CONVERTER: Final = re.compile(r":\w+\}")


def operation_at(path: str) -> Operation:
    """Of a route's path, as Starlette writes it (`/v1/models/{model:path}`)."""
    return _BY_PATH[_CONVERTER.sub("}", path)]
