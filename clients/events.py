"""What a request yields, in this order: Accepted, Progress (any number), Token (any number),
Finished, Usage; and anywhere after Accepted, Resumed."""

from __future__ import annotations

from typing import Any

import msgspec


class Accepted(msgspec.Struct, frozen=True, tag="accepted"):
    """The server took the request. Seconds from now; None where the server does not tell."""

    request_id: str | None = None
    ttft_deadline_s: float | None = None
    predicted_ttft_s: float | None = None
    trace_id: str | None = None  # for `medha-client trace`


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """A long prompt is being read."""

    prefilled_tokens: int
    total_tokens: int
    seconds_left: float


class Token(msgspec.Struct, frozen=True, tag="token"):
    """New text of one choice: normally one token's, more if the reader is slow or the answer was
    not streamed."""

    text: str
    at_s: float  # since the request was sent
    choice: int = 0
    logprobs: dict[str, Any] | None = None  # as the server wrote them


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """A choice is complete."""

    reason: str
    at_s: float
    choice: int = 0


class Usage(msgspec.Struct, frozen=True, tag="usage"):
    """Token counts, and the server's own account in milliseconds (empty for servers that give
    none)."""

    prompt_tokens: int
    completion_tokens: int
    medha: dict[str, float | bool | None] = {}
    resumed: int = 0  # how often the stream was cut and the answer went on


class Resumed(msgspec.Struct, frozen=True, tag="resumed"):
    """The stream was cut and the answer goes on: nothing is missing, nothing comes twice."""

    tokens: int | None  # whose text has come before; None: of all
    at_s: float  # since the request was sent
    times: int  # how often by now


Event = Accepted | Progress | Token | Finished | Usage | Resumed
