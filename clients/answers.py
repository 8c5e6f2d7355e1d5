"""From an OpenAI-compatible server's JSON to events and errors. Pure: no network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from clients.errors import ApiError, OverloadedError, ProtocolError, TimedOutError
from clients.events import Accepted, Event, Finished, Progress, Token, Usage
from clients.sse import Frame

DONE: Final = b"[DONE]"
PROGRESS_EVENT: Final = "medha.progress"
_PROGRESS: Final = re.compile(r"^progress (\d+)/(\d+) tokens, (\d+(?:\.\d+)?) s left$")


class _Text(msgspec.Struct):
    role: str | None = None
    content: str | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    delta: _Text | None = None
    message: _Text | None = None
    logprobs: dict[str, Any] | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    medha: dict[str, float | bool | None] = {}


class _Body(msgspec.Struct):
    """A completion, a chunk of one, a progress event or an error."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, Any] | str | None = None
    prefilled_tokens: int = 0
    total_tokens: int = 0
    seconds_left: float = 0.0


_decoder: Final = msgspec.json.Decoder(_Body)


def read_frame(frame: Frame, at_s: float) -> Iterator[Event]:
    """Events of one frame of a stream, `[DONE]` excepted; raises ApiError or ProtocolError."""
    if frame.comment is not None:
        match = _PROGRESS.match(frame.comment)
        if match:
            yield Progress(int(match[1]), int(match[2]), float(match[3]))
    elif frame.event == PROGRESS_EVENT:
        body = _decode(frame.data)
        yield Progress(body.prefilled_tokens, body.total_tokens, body.seconds_left)
    else:
        yield from read_body(frame.data, at_s)


def read_body(data: bytes, at_s: float) -> Iterator[Event]:
    """Events of a chunk, or of a whole answer; raises ApiError or ProtocolError."""
    body = _decode(data)
    if body.error is not None:
        raise api_error(None, body.error, {})
    for choice in body.choices:
        holder = choice.delta or choice.message
        text = choice.text if holder is None else holder.content
        if text is not None and (
            text or choice.finish_reason is None or choice.logprobs
        ):
            yield Token(text, at_s, choice.index, choice.logprobs)
        if choice.finish_reason is not None:
            yield Finished(choice.finish_reason, at_s, choice.index)
    if body.usage is not None:
        yield Usage(
            body.usage.prompt_tokens,
            body.usage.completion_tokens or 0,
            body.usage.medha,
        )


def read_accepted(headers: Mapping[str, str]) -> Accepted:
    """What the server promised."""
    return Accepted(
        headers.get("x-request-id"),
        _seconds(headers.get("x-medha-ttft-deadline-ms")),
        _seconds(headers.get("x-medha-predicted-ttft-ms")),
        headers.get("x-medha-trace-id"),
    )


def read_error(status: int, data: bytes, headers: Mapping[str, str]) -> ApiError:
    """The error that an answer with a bad status carries, whatever its body."""
    try:
        detail = _decode(data).error
    except ProtocolError:
        detail = None
    return api_error(
        status,
        detail or data[:200].decode("utf-8", "replace").strip() or "no message",
        headers,
    )


def api_error(
    status: int | None, detail: dict[str, Any] | str, headers: Mapping[str, str]
) -> ApiError:
    fields = detail if isinstance(detail, dict) else {"message": detail}
    kind = str(fields.get("type") or "")
    which: type[ApiError] = ApiError
    if status in (429, 503) or (
        status is None and kind in ("overloaded_error", "service_unavailable_error")
    ):
        which = OverloadedError
    elif status == 408 or (status is None and kind == "timeout_error"):
        which = TimedOutError
    return which(
        str(fields.get("message") or "no message"),
        status=status,
        kind=kind,
        param=fields.get("param"),
        code=fields.get("code"),
        retry_after_s=_number(headers.get("retry-after")),
    )


def _decode(data: bytes) -> _Body:
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(
            f"the server's answer is not OpenAI's JSON: {error}"
        ) from None


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _seconds(milliseconds: str | None) -> float | None:
    value = _number(milliseconds)
    return None if value is None else value / 1000.0
