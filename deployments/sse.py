"""Server-sent events as bytes."""

from __future__ import annotations

from typing import Any, Final

import msgspec

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": keep-alive\n\n"
EMPTY_COMMENT: Final = b":\n\n"
HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",  # nginx would collect the events otherwise
}
_encoder: Final = msgspec.json.Encoder()


def data(value: Any, event: str | None = None, event_id: str | None = None) -> bytes:
    """One event; JSON has no raw newline, so it is always a single data line."""
    head = b"" if event_id is None else _id_line(event_id)
    if event is not None:
        head += f"event: {event}\n".encode()
    return head + b"data: " + _encoder.encode(value) + b"\n\n"


def place(event_id: str) -> bytes:
    """Where the stream is, with nothing said: clients remember it and see no event."""
    return _id_line(event_id) + b"\n"


def _id_line(event_id: str) -> bytes:
    return b"id: " + event_id.encode("utf-8", "replace") + b"\n"


def comment(text: str) -> bytes:
    """A line that clients ignore and proxies see."""
    return (
        b": "
        + text.replace("\r", " ").replace("\n", " ").encode("utf-8", "replace")
        + b"\n\n"
    )
