"""Records: what the controller remembers of each answer, so that a cut stream can be resumed.

A record begins when its request is accepted, grows with its tokens, and is kept for a while after
the request has ended or its client has gone. Memory is bounded: of the ended ones the oldest go
first, then the one that wants to grow. The prompt counts only from the end on; before, the
scheduler holds it anyway.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from medha_actors.messages import (
    TOKEN_BYTES,
    Accepted,
    Event,
    FinishedEvent,
    PromptLogprobsEvent,
    Request,
    Resumed,
    TokenEvent,
    pack_tokens,
)
from medha_actors.record import Record

_encode: Final = msgspec.msgpack.Encoder().encode
_OVERHEAD_BYTES: Final = 1024  # the objects around a record's bytes, about
_EVENT_OVERHEAD_BYTES: Final = 64
_MAX_AMBIGUOUS: Final = 10_000


@dataclass(slots=True, eq=False)
class _Entry:
    """One answer. `size` is what it counts in the store."""

    answer_id: str
    request: Request
    accepted: Accepted
    token_ids: bytearray = field(default_factory=bytearray)
    first_token_at: float | None = None
    prompt_logprobs_until: int = 1
    # msgpack; only with log-probabilities
    scored: list[bytes] = field(default_factory=list)
    finished: FinishedEvent | None = None
    ended_at: float | None = None
    size: int = _OVERHEAD_BYTES

    @property
    def keeps_scores(self) -> bool:
        sampling = self.request.sampling
        return sampling.logprobs is not None or sampling.prompt_logprobs is not None


class Records:
    """Answers by their id. Pure: time comes in as `now`, epoch seconds."""

    def __init__(self, keep_s: float, max_bytes: int) -> None:
        """`keep_s` 0: nothing is remembered."""
        self._keep_s = keep_s
        self._max_bytes = max_bytes
        self._answers: dict[str, _Entry] = {}
        self._running: dict[str, _Entry] = {}  # by request id
        self._ended: dict[str, _Entry] = {}  # by answer id, the oldest end first
        # Answer ids that several requests used, until when: nobody can say which one is meant.
        self._ambiguous: dict[str, float] = {}
        self.size = 0  # bytes

    def __len__(self) -> int:
        return len(self._answers)

    def superseded_by(self, request: Request) -> str | None:
        """The id of the older request that still writes the answer which this one goes on with: it
        has to end, so that an answer never has two streams."""
        if request.resumed is None or request.answer_id is None:
            return None
        entry = self._answers.get(request.answer_id)
        if (
            entry is None
            or entry.ended_at is not None
            or entry.request.id == request.id
        ):
            return None
        return entry.request.id

    def begin(self, request: Request, accepted: Accepted, now: float) -> None:
        """The request was accepted. One that is `resumed` goes on with its answer's record; if the
        record is not here (it died with another controller), with the tokens it brought."""
        self._expire(now)
        answer_id = request.answer_id
        if answer_id is None or self._keep_s <= 0:
            return
        known = self._answers.get(answer_id)
        if request.resumed is None:
            if known is not None or answer_id in self._ambiguous:
                self._drop(known)
                self._confuse(answer_id, now)
                return
            entry = _Entry(answer_id, request, accepted)
        elif answer_id in self._ambiguous:
            return
        else:
            fresh = _Entry(
                answer_id, msgspec.structs.replace(request, resumed=None), accepted
            )
            entry = fresh if known is None else self._reopened(known, fresh.request)
            if not self._brought(entry, request.resumed):
                self._answers.pop(answer_id, None)
                return
        self._answers[answer_id] = entry
        self._running[request.id] = entry
        self.size += entry.size
        self._make_room(entry)

    def happened(self, events: Iterable[Event], now: float) -> None:
        """What the engine told of its requests; events of requests without a record are nothing
        new, nor are tokens that were generated again."""
        for event in events:
            entry = self._running.get(event.request_id)
            if entry is None:
                continue
            if isinstance(event, TokenEvent):
                self._token(entry, event)
            elif isinstance(event, PromptLogprobsEvent):
                self._prompt(entry, event)
            elif isinstance(event, FinishedEvent):
                self._end(entry, event, now)

    def find(self, answer_id: str, now: float) -> Record | None:
        """What is known of an answer; None: nothing, or no longer, or not of which of several."""
        self._expire(now)
        entry = self._answers.get(answer_id)
        if entry is None:
            return None
        return Record(
            request=entry.request,
            accepted=entry.accepted,
            token_ids=bytes(entry.token_ids),
            first_token_at=entry.first_token_at,
            prompt_logprobs_until=entry.prompt_logprobs_until,
            scored=tuple([msgspec.Raw(packed) for packed in entry.scored]),
            finished=entry.finished,
        )

    def _confuse(self, answer_id: str, now: float) -> None:
        """Two requests use the id: for a while it is nobody's."""
        self._ambiguous.pop(answer_id, None)  # the newest is the last one
        self._ambiguous[answer_id] = now + self._keep_s
        if len(self._ambiguous) > _MAX_AMBIGUOUS:
            del self._ambiguous[next(iter(self._ambiguous))]

    def _reopened(self, entry: _Entry, request: Request) -> _Entry:
        """The answer goes on in another request."""
        self._leave(entry)
        entry.request = request
        entry.finished = None
        entry.ended_at = None
        return entry

    def _brought(self, entry: _Entry, known: Resumed) -> bool:
        """Take over what the request knows beyond the record, after a controller was lost; False
        where log-probabilities were asked for, because those were lost with it."""
        news = known.token_ids[len(entry.token_ids) :]
        later = known.prompt_logprobs_until > entry.prompt_logprobs_until
        if entry.keeps_scores and (news or later):
            return False
        entry.token_ids += news
        entry.size += len(news)
        if entry.first_token_at is None:
            entry.first_token_at = known.first_token_at
        return True

    def _token(self, entry: _Entry, event: TokenEvent) -> None:
        known = len(entry.token_ids) // TOKEN_BYTES
        if event.index > known:
            self._drop(entry)  # a record with a hole is none
        if event.index != known:
            return
        entry.token_ids += pack_tokens((event.token_id,))
        if event.index == 0:
            entry.first_token_at = event.at
        self._grow(entry, event, TOKEN_BYTES)

    def _prompt(self, entry: _Entry, event: PromptLogprobsEvent) -> None:
        until = event.start + 1 + len(event.entries)
        if until <= entry.prompt_logprobs_until:
            return
        entry.prompt_logprobs_until = until
        self._grow(entry, event, 0)

    def _grow(self, entry: _Entry, event: Event, added: int) -> None:
        if entry.keeps_scores:
            packed = _encode(event)
            entry.scored.append(packed)
            added += len(packed) + _EVENT_OVERHEAD_BYTES
        entry.size += added
        self.size += added
        self._make_room(entry)

    def _end(self, entry: _Entry, event: FinishedEvent, now: float) -> None:
        """An abort is no end of the answer: its client went away, and may come back."""
        entry.finished = None if event.reason == "abort" else event
        entry.ended_at = now
        entry.size += len(entry.request.prompt_token_ids)
        self.size += len(entry.request.prompt_token_ids)
        del self._running[entry.request.id]
        self._ended[entry.answer_id] = entry
        self._make_room(entry)

    def _make_room(self, growing: _Entry) -> None:
        while self.size > self._max_bytes and self._ended:
            self._drop(next(iter(self._ended.values())))
        if self.size > self._max_bytes:
            self._drop(growing)

    def _expire(self, now: float) -> None:
        while self._ended:
            oldest = next(iter(self._ended.values()))
            if oldest.ended_at is None or oldest.ended_at + self._keep_s > now:
                break
            self._drop(oldest)
        while self._ambiguous:
            answer_id, until = next(iter(self._ambiguous.items()))
            if until > now:
                break
            del self._ambiguous[answer_id]

    def _drop(self, entry: _Entry | None) -> None:
        if entry is not None and self._answers.get(entry.answer_id) is entry:
            self._leave(entry)
            del self._answers[entry.answer_id]

    def _leave(self, entry: _Entry) -> None:
        """Out of what runs or has ended, and no longer counted."""
        self.size -= entry.size
        if entry.ended_at is not None:
            entry.size -= len(entry.request.prompt_token_ids)
            del self._ended[entry.answer_id]
        else:
            del self._running[entry.request.id]
