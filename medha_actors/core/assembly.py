"""From picks to messages: one StepMessage per KV group, carrying only what the stages do not know
yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from medha_actors.core.batch import Batch
from medha_actors.core.kv_plan import holders
from medha_actors.core.page_store import PageStore
from medha_actors.core.picks import Pick, Picks
from medha_actors.core.request import Piece, RequestState
from medha_actors.messages import Introduction, Span, StepMessage


class Flown(NamedTuple):
    """A span or a load on its way; it counts on return only if the request's epoch is still the
    same."""

    state: RequestState
    epoch: int
    stop: int
    sample: bool
    loaded: int  # tokens


@dataclass(slots=True)
class Flight:
    """A batch on its way."""

    batch: Batch
    spans: list[Flown]
    base_s: float  # predicted without the online correction, for computing
    moving_s: float  # and for pages to and from the second tier
    calibrated_s: float  # both, of all stages together
    # nothing else is in flight, or will be before it is back: every stage may have all processors
    alone: bool
    suspect: bool  # it is a suspect's (core.suspects)
    launched_at: float


def spans_of(pick: Pick) -> list[tuple[Piece, Span]]:
    """One span for each group that holds a piece of the request, in sequence order; the last one
    writes."""
    state, stop, _ = pick
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


def batch_of(
    batch_id: int,
    picks: Picks,
    budget_s: float,
    closing: list[list[str]],
    store: PageStore,
    alone: bool = False,
) -> tuple[Batch, list[Flown]]:
    """What has been packed, for the stages and for its return. `budget_s`: of it; `closing`,
    `store`, `alone`: see assemble."""
    picked = picks.decodes + picks.prefills
    messages = assemble(batch_id, picked, closing, store, alone)
    for group, message in enumerate(messages):
        if message is not None and store.tiered:
            loaded = sum([move.load for move in message.moves])
            picks.loads.moved(group, len(message.moves) - loaded, loaded)
    flown = []
    for state, stop, of_tier in picked:
        tokens = stop - state.dispatched if of_tier else 0
        flown.append(Flown(state, state.epoch, stop, stop == state.known, tokens))
    loaded_tokens = sum([one.loaded for one in flown])
    batch = Batch(
        id=batch_id,
        groups=messages,
        budget_s=budget_s,
        predicted_s=picks.loads.predicted_s(),
        prefill_tokens=picks.chunk_tokens - loaded_tokens,
        decode_tokens=picks.decode_tokens,
        loaded_tokens=loaded_tokens,
    )
    return batch, flown


def assemble(
    batch_id: int,
    picks: Sequence[Pick],
    closing: list[list[str]],
    store: PageStore,
    alone: bool = False,
) -> tuple[StepMessage | None, ...]:
    """The messages of a batch. `closing`: ids each group has still to be told to forget; `store`:
    what each has still to save and to load; `alone`: no other batch is in the grid meanwhile. What
    is sent is removed."""
    spans: list[list[Span]] = [[] for _ in closing]
    opened: list[list[Introduction]] = [[] for _ in closing]
    for pick in picks:
        if pick.loaded:
            if pick.state.request.sampling.looks_back:
                _close(pick.state, closing)
            continue
        for piece, span in spans_of(pick):
            spans[piece.group].append(span)
            if not piece.opened:
                opened[piece.group].append(introduce(pick.state, span.start))
                piece.opened = True
    messages: list[StepMessage | None] = []
    for group, own in enumerate(spans):
        if not own and not store.slots[group].loading:
            messages.append(None)
            continue
        # Shared spans first, and those of the same groups together: the groups that
        # merge a run of rows then agree on it, whatever else each has in the batch.
        # Stable, so in one order everywhere.
        own.sort(key=lambda span: (not span.groups, span.groups))
        message = StepMessage(
            batch_id=batch_id,
            spans=tuple(own),
            opened=tuple(opened[group]),
            closed=tuple(closing[group]),
            moves=store.slots[group].send(),
            alone=alone,
        )
        messages.append(message)
        closing[group] = []
    return tuple(messages)


def _close(state: RequestState, closing: list[list[str]]) -> None:
    """The stages see no tokens of what is loaded: who looks back is introduced with them anew."""
    for piece in state.pieces:
        if piece.opened:
            closing[piece.group].append(state.id)
            piece.opened = False
            piece.sent = 0
