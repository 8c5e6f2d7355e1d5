"""What holds of the scheduler's counts, pages and slots after every step."""

import itertools
from collections import Counter


def check_counts(world):
    """The invariants of counts and pages."""
    live = world.scheduler.live
    queued = {state.id for state in live.queue.ordered(world.now)}
    assert len(live.queue) == len(queued)
    assert queued or not len(live.queue.shares), (
        "while nobody waits nobody is owed anything"
    )
    held = [[] for _ in range(world.grid.groups)]
    promised = [0] * world.grid.groups
    for name, state in live.by_id.items():
        assert 0 <= state.computed <= state.dispatched <= state.known
        assert state.known == state.prompt + len(world.tokens[name])
        assert (name in queued) == state.prefilling == (name not in live.decoding)
        assert (name in live.holding) == bool(state.pieces)
        assert (name in live.ready) == (
            state.goal <= state.dispatched == state.computed < state.known
        )
        for piece in state.pieces:
            held[piece.group] += piece.pages
            promised[piece.group] += piece.promised
    assert set(live.by_id) == queued | set(live.decoding)
    assert set(live.queue.started) == {
        s.serial for s in live.by_id.values() if s.prefilling and s.pieces
    }
    assert len(live.holding) <= world.config.scheduler.max_running_requests
    for group, pages in enumerate(held):
        check_pages(world, group, Counter(pages))
        unused = live.kv.store.available(group)
        assert live.kv.available(group) == unused - promised[group] >= 0


def check_pages(world, group, users):
    """Every page is used by those who hold it, or idle with a key, or free: none is lost."""
    pages = world.scheduler.live.kv.store.groups[group]
    count = world.grid.pages_per_group
    assert pages.users == [users[page] for page in range(count)]
    resting = [*pages.free, *pages.idle, *pages.kept]
    assert sorted([*users, *resting]) == list(range(count)), "pages leaked or doubled"
    named = {page for page in range(count) if pages.key_of[page] is not None}
    assert {pages.key_of[page]: page for page in named} == pages.page_of
    assert {*pages.idle, *pages.kept} == named - set(users)


def check_slots(world):
    """Every slot has a key or is free: none is lost, none is used twice. What has been decided
    and has not come back is in flight or still to be sent."""
    every = list(range(world.grid.slots_per_group))
    for group, slots in enumerate(world.scheduler.live.kv.store.slots):
        assert sorted([*slots.key_of, *slots.free]) == every, "slots leaked or doubled"
        assert {key: slot for slot, key in slots.key_of.items()} == slots.slot_of
        sent = [
            m.moves
            for flight in world.flights
            if (m := flight.groups[group]) is not None
        ]
        moves = itertools.chain(*sent, slots.pending)
        assert slots.unsettled == Counter((move.slot, move.load) for move in moves)
        assert not slots.loading, "a load waits for a batch"
