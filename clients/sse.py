"""A parser of server-sent events that takes the byte stream in any pieces.

Follows the WHATWG rules: LF, CRLF or CR end a line, several `data` lines are joined by LF, a blank
line ends an event, lines that begin with a colon are comments. Comments are reported too, because
servers speak through them.
"""

from __future__ import annotations

from typing import NamedTuple

_BOM = b"\xef\xbb\xbf"


class Frame(NamedTuple):
    """An event (`comment` is None) or a comment (`data` is empty)."""

    data: bytes
    event: str = "message"
    comment: str | None = None


class FrameTooLargeError(Exception):
    """One event is over the limit; the stream cannot be trusted."""


class SseParser:
    """`feed` bytes as they come and get the frames they complete. An event that the stream's end
    cuts off is lost."""

    def __init__(self, max_event_bytes: int = 16 * 1024 * 1024) -> None:
        self._limit = max_event_bytes
        self._buffer = bytearray()
        self.last_event_id = ""  # of the frames so far, and of events that only set it
        # the last byte was a CR: a LF that follows belongs to it
        self._after_cr = False
        self._fresh = True

    def feed(self, chunk: bytes) -> list[Frame]:
        """Frames that are complete now; raises FrameTooLargeError."""
        if self._after_cr and chunk:
            self._after_cr = False
            chunk = chunk.removeprefix(b"\n")
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        buffer = self._buffer
        scanned = max(0, len(buffer) - 1)
        buffer += chunk
        if self._fresh:
            if len(buffer) < len(_BOM) and _BOM.startswith(buffer):
                return []
            self._fresh = False
            if buffer.startswith(_BOM):
                del buffer[: len(_BOM)]
        end = buffer.rfind(b"\n\n", scanned)
        if end < 0:
            if len(buffer) > self._limit:
                raise FrameTooLargeError(f"an event of more than {self._limit} bytes")
            return []
        blocks = bytes(buffer[:end]).split(b"\n\n")
        del buffer[: end + 2]
        frames: list[Frame] = []
        for block in blocks:
            # nearly every event of a token stream
            if block.startswith(b"data: ") and b"\n" not in block:
                frames.append(Frame(block[6:]))
            else:
                self._parse_block(block, frames)
        return frames

    def _parse_block(self, block: bytes, frames: list[Frame]) -> None:
        """The lines between two blank ones: any number of comments, at most one event."""
        data: list[bytes] = []
        event = "message"
        for line in block.split(b"\n"):
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if not name:
                if line:
                    frames.append(Frame(b"", comment=value.decode("utf-8", "replace")))
            elif name == b"data":
                data.append(value)
            elif name == b"event":
                event = value.decode("utf-8", "replace") or "message"
            elif name == b"id" and b"\0" not in value:
                self.last_event_id = value.decode("utf-8", "replace")
        if data:
            frames.append(Frame(b"\n".join(data), event))
