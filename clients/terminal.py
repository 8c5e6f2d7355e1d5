"""What the command line shows: the answer on stdout, everything else on stderr."""

from __future__ import annotations

import shutil
import time
from typing import Protocol, TextIO

import msgspec

from clients.errors import ApiError, ClientError
from clients.events import Accepted, Event, Finished, Progress, Resumed, Token, Usage

BAR_COLUMNS = 30


def describe(error: ClientError) -> str:
    """One line."""
    text = str(error)
    if isinstance(error, ApiError):
        status = f" (HTTP {error.status})" if error.status else ""
        again = (
            f"; try again in {error.retry_after_s:g} s" if error.retry_after_s else ""
        )
        text = f"the server says: {error.message}{status}{again}"
    return " ".join(text.split())


class View(Protocol):
    """Shows events as they come."""

    def show(self, event: Event) -> None: ...

    def close(self) -> None: ...


class JsonView:
    """One JSON object per line and event."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def show(self, event: Event) -> None:
        print(msgspec.json.encode(event).decode(), file=self._out, flush=True)

    def close(self) -> None:
        pass


class TextView:
    """The text as it comes, a progress line while a long prompt is read, and a summary at the
    end, with the id that `medha-client trace` takes."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out = out
        self._err = err
        self._started = time.perf_counter()
        self._accepted = Accepted()
        self._usage: Usage | None = None
        self._first_s: float | None = None
        self._last_s = 0.0
        self._pieces = 0
        self._reasons: list[str] = []
        self._resumed_times = 0
        self._line_open = False  # a progress line to be wiped
        self._ends_with_newline = False  # an empty answer is a line, too

    def show(self, event: Event) -> None:
        if isinstance(event, Token):
            self._token(event)
        elif isinstance(event, Progress):
            self._progress(event)
        elif isinstance(event, Accepted):
            self._accepted = event
        elif isinstance(event, Finished):
            self._reasons.append(event.reason)
            self._last_s = max(self._last_s, event.at_s)
        elif isinstance(event, Resumed):
            self._resumed(event)
        else:
            self._usage = event

    def close(self) -> None:
        """End the line, and tell how it went."""
        self._wipe()
        answered = bool(self._usage or self._pieces or self._reasons)
        if answered and not self._ends_with_newline:
            print(file=self._out, flush=True)
        if answered:
            print(self.summary(), file=self._err, flush=True)

    def summary(self) -> str:
        """Tokens, TTFT against what was promised, time per token."""
        tokens = self._usage.completion_tokens if self._usage else self._pieces
        parts = [f"{tokens} tokens"]
        if self._usage:
            parts[0] = f"{self._usage.prompt_tokens} -> {tokens} tokens"
        if self._first_s is not None and self._pieces > 1:
            parts.append(f"TTFT {self._first_s:.3f} s{self._promise()}")
            if tokens > 1:
                parts.append(
                    f"TPOT {1000 * (self._last_s - self._first_s) / (tokens - 1):.1f} ms"
                )
        parts.append(f"{self._last_s:.3f} s in all")
        if self._resumed_times:
            parts.append(f"cut and resumed: {self._resumed_times}")
        if self._accepted.trace_id:
            parts.append(f"id {self._accepted.trace_id}")
        unusual = sorted(set(self._reasons) - {"stop"})
        return ", ".join(parts) + (
            f" (finished: {', '.join(unusual)})" if unusual else ""
        )

    def _promise(self) -> str:
        words = []
        if self._accepted.ttft_deadline_s is not None:
            words.append(f"due {self._accepted.ttft_deadline_s:.3f}")
        if self._accepted.predicted_ttft_s is not None:
            words.append(f"predicted {self._accepted.predicted_ttft_s:.3f}")
        return f" ({', '.join(words)})" if words else ""

    def _token(self, event: Token) -> None:
        if self._first_s is None:
            self._first_s = event.at_s
        self._last_s = max(self._last_s, event.at_s)
        self._pieces += 1
        if event.choice or not event.text:
            return  # the first choice only; --json shows all
        self._wipe()
        self._out.write(event.text)
        self._out.flush()
        self._ends_with_newline = event.text.endswith("\n")

    def _progress(self, event: Progress) -> None:
        share = event.prefilled_tokens / max(1, event.total_tokens)
        text = (
            f"reading the prompt: {event.prefilled_tokens:,} of {event.total_tokens:,} tokens, "
            f"{event.seconds_left:.1f} s left"
        )
        if not self._err.isatty():
            print(text, file=self._err, flush=True)
            return
        full = round(BAR_COLUMNS * min(1.0, share))
        line = f"[{'#' * full}{'.' * (BAR_COLUMNS - full)}] {text}"
        self._err.write("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1])
        self._err.flush()
        self._line_open = True

    def _resumed(self, event: Resumed) -> None:
        self._wipe()
        self._resumed_times = event.times
        tokens = "all" if event.tokens is None else f"{event.tokens:,}"
        open_line = self._pieces and not self._ends_with_newline
        lead = "\n" if self._err.isatty() and open_line else ""
        print(
            f"{lead}[the connection was cut; resumed after {tokens} tokens]",
            file=self._err,
            flush=True,
        )

    def _wipe(self) -> None:
        if self._line_open:
            self._err.write("\r\x1b[K")
            self._err.flush()
            self._line_open = False
