"""What is in batches, and what holds of every one that a scheduler sends."""

import itertools

from medha_actors.core.chunking import LONE_BUDGETS
from medha_actors.core.group_load import load_of
from medha_actors.core.packer import FEW
from medha_actors.messages import unpack_tokens


def messages_of(batch):
    """What the groups that take part in a batch are sent."""
    return [message for message in batch.groups if message is not None]


def spans_of(batch):
    return list(
        itertools.chain.from_iterable(message.spans for message in messages_of(batch))
    )


def spans_in(batches):
    """The spans of one batch after the other."""
    return list(itertools.chain.from_iterable(map(spans_of, batches)))


def opened_in(batches):
    """The sequences that the messages of batches open."""
    messages = itertools.chain.from_iterable(map(messages_of, batches))
    return list(itertools.chain.from_iterable(message.opened for message in messages))


def placed_spans(batch):
    """Each span with the group that computes it."""
    found = []
    for group, message in enumerate(batch.groups):
        if message is not None:
            found += [(group, span) for span in message.spans]
    return found


def prefilled(world, name):
    """Positions that were computed for a request before its first token, as ranges."""
    spans = [
        span
        for span in spans_in(world.batches)
        if span.request_id == name and span.writes
    ]
    return [
        (span.start, span.stop) for span in spans if not span.sample or span.index == 0
    ]


def check_span(world, name, parts):
    """One request's span as all its groups see it: pieces cover [0, start) exactly, with the
    right tokens."""
    request = world.requests[name]
    first = parts[0][1]
    assert len(parts) == max(1, len(first.groups))
    parts = sorted(parts, key=lambda part: part[1].piece_start)
    if first.groups:
        assert tuple(group for group, _ in parts) == first.groups
    known = world.known(name)

    def readable(slot):
        """Of others: what has come back, under the same salt, if both take part at all."""
        writer = world.requests[slot.owner]
        same = writer.cache_salt == request.cache_salt
        return same and writer.cache and request.cache and slot.batch in world.landed

    cached = []
    for group, span in parts:
        assert (span.start, span.stop, span.groups) == (
            first.start,
            first.stop,
            first.groups,
        )
        assert unpack_tokens(span.token_ids) == known[span.start : span.stop]
        replica = world.replicas[group]
        if request.sampling.repetition_penalty != 1:
            assert replica.seen[name] == span.stop, "penalties need all tokens"
        cached += replica.read(name, span.piece_start, span.piece_tokens, readable)
    assert cached == list(enumerate(known[: first.start])), (
        "every token's KV in exactly one piece"
    )
    assert [span.writes for _, span in parts] == [False] * (len(parts) - 1) + [True]
    last = parts[-1][1]
    assert last.sample == (last.stop == len(known))
    assert not last.sample or last.index == len(world.tokens[name])


def check_rows(batch):
    """Groups that merge partials agree on whose rows are where."""
    for shared in {span.groups for span in spans_of(batch) if span.groups}:
        orders = set()
        for group in shared:
            spans = [
                span for span in batch.groups[group].spans if span.groups == shared
            ]
            orders.add(tuple(span.request_id for span in spans))
        assert len(orders) == 1


def check_alone(world, batch):
    """A batch that has the grid to itself is alone in flight. What was in flight when the pipeline
    died is a span of its own, and alone too."""
    flying = [*world.flights, batch]
    if any(message.alone for one in flying for message in messages_of(one)):
        assert len(flying) == 1
        assert all(message.alone for message in messages_of(batch))
    for span in spans_in([*world.flights, batch]):
        state = world.scheduler.live.by_id.get(span.request_id)
        if state is None or max(span.start, state.danger.start) >= min(
            span.stop, state.danger.stop
        ):
            continue
        assert span.start >= state.danger.start
        assert span.stop <= state.danger.stop
        assert not world.flights, "a suspect is not alone"
        assert {other.request_id for other in spans_of(batch)} == {state.id}


def check_budget(world, batch):
    """Groups keep to the budget, but for decodes alone and for the smallest chunk, which keeps
    prefill going."""
    config = world.config.scheduler
    live = world.scheduler.live
    decoding = set(live.decoding) - {span.request_id for span in spans_of(batch)}
    patient = not decoding and len(live.by_id) <= FEW
    for message in messages_of(batch):
        load = load_of(message)
        assert load.rows <= config.max_batch_tokens
        if any(is_forced(world, span) for span in message.spans):
            continue  # one request with forced tokens never waits for room
        if (
            load.prefill_rows > config.min_chunk_tokens
            and config.fixed_chunk_tokens is None
        ):
            assert world.model.predict(load) <= batch.budget_s * (
                LONE_BUDGETS if patient else 1
            ) * (1 + 1e-9)


def is_forced(world, span):
    """A decode of several tokens."""
    state = world.scheduler.live.by_id[span.request_id]
    return span.start >= state.goal and span.stop - span.start > 1
