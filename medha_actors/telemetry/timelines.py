"""One request's way through the engine, as facts with instants (epoch seconds), coalesced to a
bounded size.

A million-token prompt is thousands of chunks on every stage. `coalesce` joins neighbouring chunks
that nothing interrupted into runs of equal length, so that what is kept, shown and exported of one
request stays bounded.
"""

from __future__ import annotations

from typing import Literal

import msgspec

GapKind = Literal["preempted", "evicted", "pipeline_lost"]
MAX_STALLS = 32


class StageWork(msgspec.Struct, array_like=True):
    """A stage actor at work on a run of chunks. `exchange_s`: waiting for and talking with other KV
    groups."""

    stage: int
    group: int
    started_at: float
    ended_at: float
    busy_s: float
    exchange_s: float


class Chunk(msgspec.Struct, kw_only=True):
    """A prefill chunk, or a run of `count` uninterrupted ones; sums over the run, slack before its
    first."""

    index: int
    count: int = 1
    batch_id: int
    start: int
    tokens: int
    kv_tokens: int  # cached before the (last) chunk: what its attention had to read
    sent_at: float
    done_at: float | None = None
    predicted_s: float = 0.0
    actual_s: float | None = None
    budget_s: float = 0.0
    slack_before_s: float = 0.0
    relative_slack: float = 0.0
    beside: int = 0  # other requests in the (largest) batch
    work: list[StageWork] = []


class Gap(msgspec.Struct, kw_only=True):
    """A time in which a prefill that had begun did not go on; `count` of them when coalesced."""

    kind: GapKind
    from_at: float
    until_at: float | None = None
    by: str = ""  # the request that took the turn or the room
    by_traceparent: str | None = None
    count: int = 1
    gap_s: float = 0.0  # sum over the gaps, without the work between them


class Stall(msgspec.Struct, array_like=True):
    """Output token `index` came late: `gap_s` after the one before."""

    index: int
    at: float
    gap_s: float


class Timeline(msgspec.Struct, kw_only=True):
    """Everything worth telling of one request."""

    id: str
    traceparent: str | None
    prompt_tokens: int
    priority: int
    tenant: str = ""
    arrived_at: float  # at the HTTP edge
    queued_at: float  # in the scheduler
    deadline_at: float
    ttft_objective_s: float
    tpot_objective_s: float
    predicted_ttft_s: float
    scheduled_at: float | None = None
    prefilled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    finished_at: float | None = None
    tokens: int = 0
    largest_gap_s: float = 0.0
    stalls_total: int = 0
    preemptions: int = 0
    evictions: int = 0
    recomputed_tokens: int = 0
    cached_tokens: int = 0  # of the prompt
    chunks_total: int = 0
    reason: str | None = None
    message: str | None = None
    chunks: list[Chunk] = []
    gaps: list[Gap] = []
    stalls: list[Stall] = []

    @property
    def ttft_s(self) -> float | None:
        return (
            None
            if self.first_token_at is None
            else self.first_token_at - self.arrived_at
        )

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds per output token after the first."""
        if self.first_token_at is None or self.last_token_at is None or self.tokens < 2:
            return None
        return (self.last_token_at - self.first_token_at) / (self.tokens - 1)

    def missed(self) -> tuple[str, ...]:
        """The objectives that were not met. A client that left before the deadline has missed
        nothing."""
        missed = []
        if self.first_token_at is None:
            if (
                self.reason in ("error", "timeout")
                or (self.finished_at or 0.0) > self.deadline_at
            ):
                missed.append("ttft")
        elif self.first_token_at > self.deadline_at:
            missed.append("ttft")
        tpot_s = self.tpot_s
        if tpot_s is not None and tpot_s > self.tpot_objective_s:
            missed.append("tpot")
        if self.reason in ("error", "timeout"):
            missed.append("completion")
        return tuple(missed)


def coalesce(timeline: Timeline, limit: int) -> None:
    """Bring the chunks and the gaps down to at most `limit` each; chunks still in flight are left
    alone."""
    run = 2
    while len(timeline.chunks) > limit and run <= 2 * timeline.chunks_total:
        borders = [gap.from_at for gap in timeline.gaps]
        timeline.chunks = _joined(timeline.chunks, run, borders)
        run *= 2
    run = 2
    # more interruptions than `limit`
    while len(timeline.chunks) > limit and run <= 2 * timeline.chunks_total:
        timeline.chunks = _joined(timeline.chunks, run, [])
        run *= 2
    if len(timeline.gaps) > limit:
        timeline.gaps = _joined_gaps(timeline.gaps)


def _joined(chunks: list[Chunk], run: int, borders: list[float]) -> list[Chunk]:
    joined = chunks[:1]
    for chunk in chunks[1:]:
        last = joined[-1]
        done = (
            last.done_at is not None
            and chunk.done_at is not None
            and last.start + last.tokens == chunk.start
        )
        if (
            done
            and last.count + chunk.count <= run
            and not any(last.sent_at <= b <= chunk.sent_at for b in borders)
        ):
            _absorb(last, chunk)
        else:
            joined.append(chunk)
    return joined


def _absorb(run: Chunk, chunk: Chunk) -> None:
    run.count += chunk.count
    run.tokens += chunk.tokens
    run.kv_tokens = chunk.kv_tokens
    run.done_at = chunk.done_at
    run.predicted_s += chunk.predicted_s
    run.actual_s = (run.actual_s or 0.0) + (chunk.actual_s or 0.0)
    run.beside = max(run.beside, chunk.beside)
    places = {(work.stage, work.group): work for work in run.work}
    for work in chunk.work:
        before = places.get((work.stage, work.group))
        if before is None:
            run.work.append(work)
            continue
        before.ended_at = work.ended_at
        before.busy_s += work.busy_s
        before.exchange_s += work.exchange_s


def _joined_gaps(gaps: list[Gap]) -> list[Gap]:
    """Half as many: each keeps the first one's cause."""
    joined = []
    for first, second in zip(gaps[::2], gaps[1::2], strict=False):
        if second.until_at is None:
            joined += [first, second]
            continue
        first.until_at = second.until_at
        first.count = first.count + second.count
        first.gap_s += second.gap_s
        joined.append(first)
    return joined + (gaps[-1:] if len(gaps) % 2 else [])
