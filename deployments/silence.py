"""What a stream says while it has nothing to say: comments, which clients ignore and proxies see.

The first comes after a second of silence, so that a quick answer has none at all; a long prefill
tells its progress, and after that only a long silence is broken. Some clients strip every network
chunk and then miss where a comment ends (`vllm bench serve` loses the events that follow one), so
an empty comment goes out with the next event and ends it for them.

x-medha-comments: 0     this stream wants none
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from deployments import sse
from medha_actors.config import StreamConfig

COMMENTS_HEADER: Final = "x-medha-comments"
_OFF: Final = frozenset({"0", "off", "false", "no"})


def wants_comments(headers: Mapping[str, str]) -> bool:
    return headers.get(COMMENTS_HEADER, "").strip().lower() not in _OFF


class Silence:
    """The comments of one stream: `comment` when nothing has happened, `ended` when something
    has."""

    def __init__(
        self,
        stream: StreamConfig,
        wanted: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._wanted = wanted and stream.comments
        self._clock = clock
        self._event_at = clock()  # the last event, or the stream's start
        self._said_at = self._event_at  # the last event or comment
        self._begun = False
        self._open = False  # a comment was the last thing said
        self._progress: str | None = None  # news to tell
        self._progress_at = self._event_at - stream.progress_s

    def progressed(self, text: str) -> None:
        """The latest news of a prefill, for the next comment."""
        self._progress = text

    def wait_s(self) -> float:
        """How long to wait for an event before `comment` is asked."""
        if not self._wanted:
            return self._stream.keep_alive_s
        return max(0.0, self._due_at() - self._clock())

    def comment(self) -> bytes:
        """What to say now; nothing if it is too early."""
        now = self._clock()
        if not self._wanted or now < self._due_at():
            return b""
        text = self._progress
        if text is not None:
            self._progress_at = now
            self._progress = None
        self._said_at = now
        self._begun = True
        self._open = True
        return sse.KEEP_ALIVE if text is None else sse.comment(text)

    def ended(self) -> bytes:
        """An event goes out now: what has to stand before it in the same chunk."""
        self._event_at = self._said_at = self._clock()
        self._begun = True
        self._progress = None
        was_open = self._open
        self._open = False
        return sse.EMPTY_COMMENT if was_open else b""

    def _due_at(self) -> float:
        stream = self._stream
        first_at = self._event_at + stream.first_comment_s
        if not self._begun:
            return first_at
        keep_alive_at = self._said_at + stream.keep_alive_s
        if self._progress is None:
            return keep_alive_at
        return min(keep_alive_at, max(first_at, self._progress_at + stream.progress_s))
