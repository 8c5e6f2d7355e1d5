"""From picks to messages: one StepMessage per KV group, carrying only what the stages do not know
yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from medha_actors.core.kv_plan import holders
from medha_actors.core.packer import Pick
from medha_actors.core.request import Piece, RequestState
from medha_actors.messages import Batch, Introduction, Span, StepMessage


class Flown(NamedTuple):
    """A span on its way; it counts on return only if the request's epoch is still the same."""

    state: RequestState
    epoch: int
    stop: int
    sample: bool


@dataclass(slots=True)
class Flight:
    """A batch on its way."""

    batch: Batch
    spans: list[Flown]
    base_s: float  # predicted without the online correction
    calibrated_s: float  # the same, of all stages together
    alone: bool  # a suspect's: nothing else is in flight (core.suspects)
    launched_at: float


def spans_of(pick: Pick) -> list[tuple[Piece, Span]]:
    """One span for each group that holds a piece of the request, in sequence order; the last one
    writes."""
    state, stop = pick
    start = state.dispatched
    touched = holders(state, state.dispatched)
    groups = tuple(piece.group for piece, _ in touched) if len(touched) > 1 else ()
    tokens = state.tokens(start, stop)
    next_token = -1
    if stop < state.prompt and state.request.sampling.prompt_logprobs is not None:
        next_token = int.from_bytes(state.tokens(stop, stop + 1), "little", signed=True)
    spans = []
    for piece, cached in touched:
        writes = piece is touched[-1][0]
        span = Span(
            request_id=state.id,
            start=start,
            stop=stop,
            token_ids=tokens,
            piece_start=piece.start,
            piece_tokens=cached,
            new_pages=tuple(piece.pages[piece.sent :]),
            writes=writes,
            sample=writes and stop == state.known,
            index=state.output,
            groups=groups,
            next_token_id=next_token,
        )
        spans.append((piece, span))
        piece.sent = len(piece.pages)
    return spans


def introduce(state: RequestState, start: int) -> Introduction:
    """What a group must know of a request whose first span there begins at `start`."""
    sampling = state.request.sampling
    before = state.tokens(0, start) if sampling.looks_back else b""
    return Introduction(state.id, sampling, before)


def assemble(
    batch_id: int, picks: Sequence[Pick], closing: list[list[str]]
) -> tuple[StepMessage | None, ...]:
    """The messages of a batch. `closing`: ids each group has still to be told to forget; those sent
    are removed."""
    spans: list[list[Span]] = [[] for _ in closing]
    opened: list[list[Introduction]] = [[] for _ in closing]
    for pick in picks:
        for piece, span in spans_of(pick):
            spans[piece.group].append(span)
            if not piece.opened:
                opened[piece.group].append(introduce(pick.state, span.start))
                piece.opened = True
    messages: list[StepMessage | None] = []
    for group, own in enumerate(spans):
        if not own:
            messages.append(None)
            continue
        # Shared spans first, and those of the same groups together: the groups that merge a run of
        # rows then agree on it, whatever else each has in the batch. Stable, so in one order
        # everywhere.
        own.sort(key=lambda span: (not span.groups, span.groups))
        message = StepMessage(
            batch_id=batch_id,
            spans=tuple(own),
            opened=tuple(opened[group]),
            closed=tuple(closing[group]),
        )
        messages.append(message)
        closing[group] = []
    return tuple(messages)
