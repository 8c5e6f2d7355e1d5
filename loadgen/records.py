"""What is planned, what was seen, and a whole run: the data that every other part of the load
generator works on.

A RunRecord says nothing about how it came to be: the results of a simulation are written by the
same code as those of a measurement.
"""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

SHORT = "short"
LONG = "long"
PROBE = "probe"
UNSENT = "not sent: the turn before it failed"


class Turn(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The place of a request in a session: its prompt is everything said before, and a message."""

    session: int
    number: int  # from 0
    count: int  # turns of the session
    message_tokens: int
    # from the last token of the answer before to this request: thinking, or a tool at work
    pause_s: float = 0.0


class PlannedRequest(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request of a workload, before anything is sent."""

    index: int
    prompt_tokens: int
    output_tokens: int
    # due, in seconds after the start; None: when the closed loop has a place
    at: float | None = None
    kind: str = SHORT
    # prefix blocks: equal ids at the start of two prompts are equal tokens
    blocks: tuple[int, ...] = ()
    block_tokens: int = 0
    turn: Turn | None = None
    after: int | None = None  # index of the turn before, whose answer it waits for
    # tokens that earlier requests of the workload begin with too: what a cache without
    # bounds would know; None: in this workload nothing is shared
    known_tokens: int | None = None


class RequestRecord(msgspec.Struct, kw_only=True):
    """One request as it went. Instants are in seconds, while it runs on the monotonic clock, then
    since the start.

    `None` means that it never came to that.
    """

    index: int
    kind: str
    prompt_tokens: int  # asked for; the server's own count is in `usage_prompt_tokens`
    output_tokens: int  # asked for
    id: str = ""
    scheduled_at: float = 0.0  # when the workload wanted it sent
    # when the concurrency limit let it go: the same, without a limit
    released_at: float = 0.0
    sent_at: float | None = None  # just before it was handed to the socket
    answered_at: float | None = None  # the response's headers
    # one per event with content
    token_times: array[float] = msgspec.field(default_factory=lambda: array("d"))
    ended_at: float | None = None
    status: int | None = None  # HTTP
    finish_reason: str | None = None
    usage_prompt_tokens: int | None = None
    usage_completion_tokens: int | None = None
    cached_tokens: int | None = None  # of the prompt, by the server's account
    error: str | None = None  # None: all is well
    cancelled: bool = False  # given up by us (Ctrl-C); neither completed nor failed
    # predicted time to first token on the idle server
    isolated_ttft_s: float | None = None
    announced_ttft_s: float | None = None  # what the server told the client on arrival
    deadline_s: float | None = None  # within which the server wanted to answer, it said
    blocks: tuple[int, ...] = ()
    block_tokens: int = 0
    turn: Turn | None = None
    known_tokens: int | None = None
    # pieces of its text, kept where a next turn repeats it
    answer: list[str] | None = None

    @property
    def warm(self) -> bool | None:
        """Whether at least half of the prompt could come from a cache; None: nothing is shared."""
        return (
            None
            if self.known_tokens is None
            else 2 * self.known_tokens >= self.prompt_tokens
        )

    @property
    def completed(self) -> bool:
        return self.ended_at is not None and self.error is None and not self.cancelled

    @property
    def generated_tokens(self) -> int:
        """Tokens of the answer: the server's count, else the number of events with content."""
        if self.usage_completion_tokens is not None:
            return self.usage_completion_tokens
        return len(self.token_times)

    def rebase(self, origin: float) -> None:
        """Turn instants of the monotonic clock into seconds since `origin`."""
        self.scheduled_at -= origin
        self.released_at -= origin
        self.sent_at = None if self.sent_at is None else self.sent_at - origin
        self.answered_at = (
            None if self.answered_at is None else self.answered_at - origin
        )
        self.ended_at = None if self.ended_at is None else self.ended_at - origin
        self.token_times = array(
            "d", [instant - origin for instant in self.token_times]
        )


def open_record(request: PlannedRequest, run_id: str) -> RequestRecord:
    """An empty record of a planned request."""
    return RequestRecord(
        index=request.index,
        kind=request.kind,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        id=f"{run_id}-{request.kind}-{request.index}",
        blocks=request.blocks,
        block_tokens=request.block_tokens,
        turn=request.turn,
        known_tokens=request.known_tokens,
        answer=None if request.turn is None else [],
    )


# Sends one request and waits for its end.
Ask = Callable[[PlannedRequest], Awaitable[RequestRecord]]


class RunRecord(msgspec.Struct, kw_only=True):
    """A finished run, measured or simulated."""

    records: list[RequestRecord]
    # from the start to the end of the last request of the load (probes left out)
    duration_s: float
    config: dict[str, Any]  # what config.yml holds
    label: str = ""
    started_at: float = 0.0  # seconds since the epoch
    simulated: bool = False
    interrupted: bool = False  # by the user
    # by capacity's search: the objectives could no longer be met
    cut_short: bool = False
    open_loop: bool = True
    # how late the program's own timers fired
    loop_lags_s: list[float] = msgspec.field(default_factory=list)
    cpu_share: float | None = None  # of one core, used by the load generator
    # (prompt tokens, idle TTFT in seconds)
    isolated: list[tuple[int, float]] = msgspec.field(default_factory=list)
    # False: prompt lengths are a guess (no tokenizer to be had)
    exact_prompts: bool = True
