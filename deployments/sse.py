"""Server-sent events as bytes."""

from __future__ import annotations

from typing import Any, Final

import msgspec

DONE: Final = b"data: [DONE]\n\n"
KEEP_ALIVE: Final = b": keep-alive\n\n"
HEADERS: Final = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",  # nginx would collect the events otherwise
}
_encoder: Final = msgspec.json.Encoder()


def data(value: Any, event: str | None = None) -> bytes:
    """One event; JSON has no raw newline, so it is always a single data line."""
    head = f"event: {event}\ndata: ".encode() if event else b"data: "
    return head + _encoder.encode(value) + b"\n\n"


def comment(text: str) -> bytes:
    """A line that clients ignore and proxies see."""
    return b": " + text.replace("\r", " ").replace("\n", " ").encode("utf-8", "replace") + b"\n\n"
