"""Recorder: from the scheduler's records and the stages' reports to timelines, and to the recent
past of the stages.

Called on the controller's loop, a few times per step; its work is proportional to the prefills and
tokens of a step.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Sequence

from medha_actors.core.batch import Batch
from medha_actors.core.record import BatchRecord
from medha_actors.messages import (
    TOKEN_BYTES,
    Accepted,
    Event,
    FinishedEvent,
    Request,
    Span,
    StepResult,
    TokenEvent,
)
from medha_actors.telemetry.reports import StepReport
from medha_actors.telemetry.timelines import (
    MAX_STALLS,
    Chunk,
    Gap,
    GapKind,
    StageWork,
    Stall,
    Timeline,
    coalesce,
)

# a token that takes longer than so many TPOT objectives is a stall
STALL_OBJECTIVES = 2.0
RECENT_BATCHES = 1024
_KIND = re.compile(r"^((chat)?cmpl-|resp_|msg_)")


def page_name(request_id: str) -> str:
    """What the live page calls a request (medha.html: `short`)."""
    parts = _KIND.sub("", request_id).split("-")
    name = f"{parts[0][:8]}-{parts[-2]}" if len(parts) > 2 else request_id
    return name[:20]


class Recorder:
    """`last` finished requests are kept, and all live ones."""

    def __init__(self, last: int, max_chunks: int) -> None:
        self._last = last
        self._max_chunks = max_chunks
        self.live: dict[str, Timeline] = {}
        self.finished: OrderedDict[str, Timeline] = OrderedDict()
        self.steps: deque[StepReport] = deque(maxlen=RECENT_BATCHES)
        self._sent: dict[int, tuple[Batch, list[tuple[Timeline, Chunk]]]] = {}
        self._seq = 0

    def accepted(self, request: Request, answer: Accepted, now: float) -> None:
        """A request waits."""
        timeline = self.live[request.id] = Timeline(
            id=request.id,
            traceparent=request.traceparent,
            prompt_tokens=request.prompt_tokens,
            priority=request.priority,
            tenant=request.tenant,
            arrived_at=request.arrived_at,
            queued_at=now,
            deadline_at=answer.deadline_at,
            ttft_objective_s=answer.ttft_objective_s,
            tpot_objective_s=answer.tpot_objective_s,
            predicted_ttft_s=answer.predicted_ttft_s,
        )
        known = request.resumed
        if known is not None and known.token_ids:
            # Its first token was long ago; the next one is counted from its return on.
            timeline.tokens = len(known.token_ids) // TOKEN_BYTES
            timeline.first_token_at = known.first_token_at
            timeline.last_token_at = now

    def sent(
        self, batch: Batch, record: BatchRecord, now: float
    ) -> list[tuple[str, int, int]]:
        """A batch has left for the stages. Returns its prefills: request, first position,
        tokens."""
        for victim, by in record.preempted:
            self._interrupt(victim, "preempted", by, now)
        for victim, by in record.evicted:
            self._interrupt(victim, "evicted", by, now)
        chunks: list[tuple[Timeline, Chunk]] = []
        if record.slacks:
            spans = _spans_of(batch)
            for request_id, slack_s, total_work_s in record.slacks:
                timeline = self.live.get(request_id)
                span = spans[request_id]
                if timeline is None:
                    continue
                chunk = Chunk(
                    index=timeline.chunks_total,
                    batch_id=batch.id,
                    start=span.start,
                    tokens=span.stop - span.start,
                    kv_tokens=span.start,
                    sent_at=now,
                    predicted_s=batch.predicted_s,
                    budget_s=batch.budget_s,
                    slack_before_s=slack_s,
                    relative_slack=slack_s / max(total_work_s, 1e-9),
                    beside=len(spans) - 1,
                )
                self._resume(timeline, now)
                timeline.chunks.append(chunk)
                timeline.chunks_total += 1
                chunks.append((timeline, chunk))
        self._sent[batch.id] = batch, chunks
        return [(timeline.id, chunk.start, chunk.tokens) for timeline, chunk in chunks]

    def done(self, results: Sequence[StepResult], now: float) -> Batch | None:
        """All groups' results of one batch; None: a batch of before the pipeline was lost."""
        batch, chunks = self._sent.pop(results[0].batch_id, (None, []))
        if batch is None:
            return None
        for result in results:
            message = batch.groups[result.group]
            held = (
                {span.request_id for span in message.spans}
                if message is not None
                else set()
            )
            own = [
                (timeline, chunk) for timeline, chunk in chunks if timeline.id in held
            ]
            self._seq += 1
            self.steps.append(
                StepReport(
                    self._seq,
                    batch.id,
                    result.group,
                    result.stage_starts,
                    result.stage_seconds,
                    result.exchange_seconds,
                    tuple(
                        [
                            (timeline.id, chunk.start, chunk.tokens)
                            for timeline, chunk in own
                        ]
                    ),
                    len(held) - len(own),
                    batch.predicted_s,
                    batch.budget_s,
                )
            )
            for _, chunk in own:
                _work(chunk, result)
        actual_s = max(
            [max(result.stage_seconds, default=0.0) for result in results], default=0.0
        )
        for timeline, chunk in chunks:
            chunk.done_at = now
            chunk.actual_s = actual_s
            if len(timeline.chunks) > self._max_chunks:
                coalesce(timeline, self._max_chunks)
        return batch

    def lost(self, now: float) -> None:
        """The pipeline is gone with all batches in it."""
        self._sent.clear()
        for timeline in self.live.values():
            if timeline.chunks:
                timeline.chunks = [
                    chunk for chunk in timeline.chunks if chunk.done_at is not None
                ]
                self._interrupt(timeline.id, "pipeline_lost", "", now)

    def happened(self, event: Event) -> Timeline | None:
        """Follow a token or an end; returns the timeline where there is one."""
        timeline = self.live.get(event.request_id)
        if timeline is None:
            return None
        if isinstance(event, TokenEvent):
            self._token(timeline, event)
        elif isinstance(event, FinishedEvent):
            self._finish(timeline, event)
        return timeline

    def find(self, name: str) -> list[Timeline]:
        """By trace id, engine request id, the beginning of one (the id that the client sees), or
        the name that the live page gives it."""
        both = [*self.finished.values(), *self.live.values()]
        exact = [t for t in both if t.id == name or (t.traceparent or "")[3:35] == name]
        kinds = ("", "cmpl-", "chatcmpl-", "resp_", "msg_")
        known = tuple([f"{kind}{name}-" for kind in kinds])
        begun = [] if exact else [t for t in both if t.id.startswith(known)]
        return exact or begun or [t for t in both if page_name(t.id) == name]

    def _token(self, timeline: Timeline, event: TokenEvent) -> None:
        timeline.tokens += 1
        if timeline.gaps:
            # its KV survived the loss of the pipeline: there was no chunk to resume
            self._resume(timeline, event.at)
        last = timeline.last_token_at
        timeline.last_token_at = event.at
        if last is None:
            timeline.first_token_at = event.at
            return
        gap_s = event.at - last
        if gap_s > timeline.largest_gap_s:
            timeline.largest_gap_s = gap_s
        if gap_s > STALL_OBJECTIVES * timeline.tpot_objective_s:
            timeline.stalls_total += 1
            if len(timeline.stalls) < MAX_STALLS:
                timeline.stalls.append(Stall(event.index, event.at, gap_s))

    def _finish(self, timeline: Timeline, event: FinishedEvent) -> None:
        self._resume(timeline, event.finished_at)
        timeline.scheduled_at = event.scheduled_at
        timeline.prefilled_at = event.prefilled_at
        timeline.finished_at = event.finished_at
        timeline.reason = event.reason
        timeline.message = event.message
        timeline.preemptions = event.preemptions
        timeline.recomputed_tokens = event.recomputed_tokens
        timeline.cached_tokens = event.cached_tokens
        del self.live[timeline.id]
        self.finished[timeline.id] = timeline
        while len(self.finished) > self._last:
            self.finished.popitem(last=False)

    def _interrupt(self, victim: str, kind: GapKind, by: str, now: float) -> None:
        timeline = self.live.get(victim)
        if timeline is None:
            return
        timeline.evictions += kind == "evicted"
        if timeline.gaps and timeline.gaps[-1].until_at is None:
            return  # it waits already
        taker = self.live.get(by)
        timeline.gaps.append(
            Gap(
                kind=kind,
                from_at=now,
                by=by,
                by_traceparent=taker.traceparent if taker is not None else None,
            )
        )
        if len(timeline.gaps) > 2 * self._max_chunks:
            coalesce(timeline, self._max_chunks)

    @staticmethod
    def _resume(timeline: Timeline, now: float) -> None:
        if timeline.gaps and timeline.gaps[-1].until_at is None:
            gap = timeline.gaps[-1]
            gap.until_at = now
            gap.gap_s = now - gap.from_at


def _spans_of(batch: Batch) -> dict[str, Span]:
    """By request; the last group's where several have one."""
    spans: dict[str, Span] = {}
    for message in batch.groups:
        if message is not None:
            spans |= {span.request_id: span for span in message.spans}
    return spans


def _work(chunk: Chunk, result: StepResult) -> None:
    """Note on a chunk what the stages of one group did with its batch."""
    times = zip(
        result.stage_starts, result.stage_seconds, result.exchange_seconds, strict=True
    )
    chunk.work = chunk.work + [
        StageWork(stage, result.group, start, start + seconds, seconds, exchange)
        for stage, (start, seconds, exchange) in enumerate(times)
    ]
