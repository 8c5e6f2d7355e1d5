"""Sending an answer: as a stream of events, or whole."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.types import Message, Send

from deployments import failures, resuming, sse
from deployments.answers import Answer, timing_of, usage_of
from deployments.dialect import Dialect
from deployments.generation import Generation
from deployments.outbox import Addition
from deployments.silence import Silence
from medha_actors.config import StreamConfig
from medha_actors.errors import EngineError, MedhaError
from medha_actors.messages import FinishedEvent, ProgressEvent

log = logging.getLogger(__name__)


class Tally:
    """What is known of a job's choices so far."""

    def __init__(self, live: Generation) -> None:
        self._live = live
        self._open = {choice.index for choice in live.job.choices}
        self._generated: dict[int, int] = {}
        # tokens of each choice's prompt, where it has ended
        self._cached: dict[int, int] = {}
        self._first_tokens_at: list[float] = []
        # of a first token that is not on the wire yet
        self._unsent_at: float | None = None
        self._endings: list[FinishedEvent] = []

    @property
    def finished(self) -> bool:
        return not self._open

    def add(self, addition: Addition) -> None:
        self._generated[addition.index] = addition.generated
        if addition.finish_reason is not None:
            self._open.discard(addition.index)
        if addition.first_token_at is not None:
            self._first_tokens_at.append(addition.first_token_at)
            self._unsent_at = addition.first_token_at
        if addition.ending is not None:
            self._endings.append(addition.ending)
            self._cached[addition.index] = addition.ending.cached_tokens

    def usage(self, final: bool = True) -> Any:
        timing = None
        if final:
            timing = timing_of(
                self._live.accepted,
                self._live.job.arrived_at,
                self._first_tokens_at,
                self._endings,
            )
        generated = sum(self._generated.values())
        return usage_of(self._live.job, generated, self._cached_tokens(), timing)

    def _cached_tokens(self) -> int:
        """Each prompt counts once, as in prompt_tokens: its first choice may have computed what
        the others found."""
        first_of_each = range(0, len(self._live.job.choices), self._live.job.body.n)
        return sum([self._cached_of(index) for index in first_of_each])

    def _cached_of(self, index: int) -> int:
        """As it was, or as found on arrival."""
        accepted = self._live.accepted
        on_arrival = accepted[index].cached_tokens if index < len(accepted) else 0
        return self._cached.get(index, on_arrival)

    def sent(self) -> None:
        """What was added is on the wire."""
        job = self._live.job
        if self._unsent_at is not None and job.way is not None and job.past is None:
            job.way.took(time.time() - self._unsent_at)
        self._unsent_at = None

    def headers(self) -> dict[str, str]:
        """What was promised on arrival."""
        timing = timing_of(self._live.accepted, self._live.job.arrived_at)
        return {
            "x-medha-ttft-deadline-ms": str(timing.ttft_deadline_ms),
            "x-medha-predicted-ttft-ms": str(timing.predicted_ttft_ms),
        }


async def send_whole(
    live: Generation,
    answer: Answer,
    dialect: Dialect,
    stream: StreamConfig,
    headers: dict[str, str],
    send: Send,
) -> None:
    """Wait for all choices; raises MedhaError, before anything is sent, if one fails."""
    tally = Tally(live)
    whole = {choice.index: Addition(choice.index) for choice in live.job.choices}
    if live.shown is not None:
        whole[live.shown.index].absorb(live.shown)
    while not tally.finished:
        for item in await live.take(stream.keep_alive_s):
            if isinstance(item, MedhaError):
                raise item
            if isinstance(item, Addition):
                tally.add(item)
                whole[item.index].absorb(item)
    reply = answer.whole(whole.values(), tally.usage())
    body = msgspec.json.encode(dialect.whole(reply))
    await _start(
        send,
        200,
        {**headers, **tally.headers(), "content-type": "application/json"},
        len(body),
    )
    await send({"type": "http.response.body", "body": body})


async def send_stream(
    live: Generation,
    answer: Answer,
    dialect: Dialect,
    stream: StreamConfig,
    headers: dict[str, str],
    send: Send,
) -> None:
    """Headers at once, then one event per token, and comments while there is none; errors become
    an event."""
    tally = Tally(live)
    writer = StreamWriter(live, answer, dialect, stream, tally)
    await _start(send, 200, {**headers, **tally.headers(), **sse.HEADERS})
    await _part(send, writer.beginning())
    try:
        while not (tally.finished or writer.failed):
            await _part(send, writer.write(await live.take(writer.wait_s())))
            tally.sent()
        closing = b"" if writer.failed else writer.closing()
    except OSError:
        return  # the client has gone
    except Exception:
        log.exception("a stream failed in a way that should not happen")
        closing = dialect.failure(EngineError("internal error; see the server's log"))
    await send({"type": "http.response.body", "body": closing})


class Sent:
    """A `send` that knows how far the answer has come, so that it can be ended from outside."""

    def __init__(self, send: Send, path: str) -> None:
        """`path`: the route's."""
        self._send = send
        self._path = path
        # how a stream says it
        self.failure: Callable[[MedhaError], bytes] = failures.last_frame
        self._started = False
        self._streaming = False
        self._ended = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            kind = dict(message["headers"]).get(b"content-type", b"")
            self._streaming = kind.startswith(b"text/event-stream")
        elif not message.get("more_body", False):
            self._ended = True
        await self._send(message)

    async def end(self, error: MedhaError, headers: dict[str, str]) -> None:
        """Say the error: as the answer, or as the last frame of a stream; nothing after the end."""
        if not self._started:
            await failures.send(error, headers, self._send, self._path)
        elif self._streaming and not self._ended:
            await self._send(
                {"type": "http.response.body", "body": self.failure(error)}
            )


class StreamWriter:
    """Frames of one stream."""

    def __init__(
        self,
        live: Generation,
        answer: Answer,
        dialect: Dialect,
        stream: StreamConfig,
        tally: Tally,
    ) -> None:
        self._answer = answer
        self._dialect = dialect
        self._stream = stream
        self._tally = tally
        self._live = live
        self._job = live.job
        options = live.job.body.stream_options
        self._usage = bool(options and options.include_usage)
        self._continuous = bool(
            options and options.continuous_usage_stats and options.include_usage
        )
        self._ids = self._job.event_ids and len(self._job.choices) == 1
        self._silence = Silence(stream, live.job.comments)
        self._next_progress_at = 0.0
        self.failed = False

    def beginning(self) -> bytes:
        """What a dialect says before the first token, and from where on this stream tells the
        answer, for those who want to know. What the client of a resumed answer has already is
        counted, and not sent."""
        if self._live.shown is not None:
            self._tally.add(self._live.shown)
            self._answer.chunk(self._live.shown)
        begun = self._dialect.beginning(self._tally.usage(final=False))
        if not self._ids:
            return begun
        shown = self._live.shown or Addition(0)
        return begun + sse.place(resuming.event_id(self._job.id, shown))

    def wait_s(self) -> float:
        """How long to wait for something to write."""
        return self._silence.wait_s()

    def write(self, items: list[Any]) -> bytes:
        """Frames for what happened; a comment for silence. An error is the last frame and sets
        `failed`."""
        frames: list[bytes] = []
        for item in items:
            if isinstance(item, ProgressEvent):
                frames.append(self._progress(item))
            elif isinstance(item, MedhaError):
                frames.append(self._dialect.failure(item))
                self.failed = True
                break
            else:
                frames.append(self._addition(item))
        written = b"".join(frames)
        return self._silence.ended() + written if written else self._silence.comment()

    def closing(self) -> bytes:
        return self._dialect.ending(self._answer.closing(self._tally.usage()))

    def _addition(self, addition: Addition) -> bytes:
        self._tally.add(addition)
        reply = self._answer.chunk(addition)
        if reply is None:
            return b""
        if self._continuous:
            reply.usage = self._tally.usage(final=False)
        elif self._usage:
            reply.usage = None
        event_id = resuming.event_id(self._job.id, addition) if self._ids else None
        return self._dialect.chunk(reply, event_id)

    def _progress(self, event: ProgressEvent) -> bytes:
        left_s = max(0.0, event.seconds_left)
        if not self._job.body.medha.progress:
            done = f"{event.prefilled_tokens}/{event.total_tokens}"
            self._silence.progressed(f"progress {done} tokens, {left_s:.1f} s left")
            return b""
        now = time.monotonic()
        if now < self._next_progress_at:
            return b""
        self._next_progress_at = now + self._stream.progress_s
        return sse.data(
            {
                "id": self._job.id,
                "object": "medha.progress",
                "created": self._job.created,
                "model": self._job.model,
                "choices": [],  # so that clients who take it for a chunk find nothing in it
                "prefilled_tokens": event.prefilled_tokens,
                "total_tokens": event.total_tokens,
                "seconds_left": round(left_s, 3),
            },
            event="medha.progress",
        )


async def _start(
    send: Send, status: int, headers: dict[str, str], length: int | None = None
) -> None:
    pairs = [
        (name.encode("latin-1"), value.encode("latin-1", "replace"))
        for name, value in headers.items()
    ]
    if length is not None:
        pairs.append((b"content-length", str(length).encode()))
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def _part(send: Send, data: bytes) -> None:
    if data:
        await send({"type": "http.response.body", "body": data, "more_body": True})
