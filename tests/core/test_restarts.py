"""Requests that are cancelled or lose their caches at any point, or go on in another scheduler."""

import msgspec
import pytest
from core_inputs import request_of
from core_world import world_of

from medha_actors.core.simulator import results_of
from medha_actors.messages import Accepted, Resumed, pack_tokens


@pytest.mark.parametrize(
    ("stages", "groups", "cutoff"), [(1, 1, None), (3, 1, None), (2, 3, 10)]
)
def test_cancelling_at_every_point(stages, groups, cutoff):
    def run(cancel_at):
        world = world_of(
            stages,
            groups,
            pages=30,
            cutoff=cutoff,
            max_chunk_tokens=16,
            min_chunk_tokens=8,
        )
        for name in ("a", "b"):
            world.add(request_of(name, 40, 4, world.now))
        step = 0
        while world.scheduler.live.by_id:
            for act in (world.launch, world.land):
                if step == cancel_at:
                    world.cancel("a")
                step += 1
                act()
        world.drain()
        assert world.finished["b"].reason == "length"
        assert world.finished["a"].reason == (
            "abort" if cancel_at < step and len(world.tokens["a"]) < 4 else "length"
        )
        assert all(
            world.scheduler.live.kv.available(group) == 30 for group in range(groups)
        )
        return step

    for cancel_at in range(run(10**6)):
        run(cancel_at)


@pytest.mark.parametrize(
    ("groups", "lost"), [(1, None), (1, ()), (2, None), (2, (0,)), (2, (1,)), (2, ())]
)
def test_restarting_at_every_point(groups, lost):
    def run(restart_at):
        world = world_of(
            2, groups, pages=30, cutoff=10, max_chunk_tokens=16, min_chunk_tokens=8
        )
        for name in ("a", "b"):
            world.add(request_of(name, 40, 4, world.now))
        step = 0
        while world.scheduler.live.by_id:
            for act in (world.launch, world.land):
                if step == restart_at:
                    world.restart(lost)
                step += 1
                act()
        assert all(len(tokens) == 4 for tokens in world.tokens.values())
        return step, world

    for restart_at in range(run(10**6)[0]):
        run(restart_at)


def test_losing_a_group_costs_only_those_with_a_piece_there():
    world = world_of(1, 2, pages=30, max_chunk_tokens=16, min_chunk_tokens=8)
    for name in ("a", "b"):
        world.add(request_of(name, 20, 30, world.now))
    while min(map(len, world.tokens.values())) < 5:
        world.launch()
        world.land()
    first, second = (
        world.scheduler.live.by_id[name].pieces[0].group for name in ("a", "b")
    )
    assert first != second
    world.restart({first})
    world.drain()
    assert world.finished["a"].recomputed_tokens > 0
    assert world.finished["b"].recomputed_tokens == 0
    assert [len(world.tokens[name]) for name in ("a", "b")] == [30, 30]


def test_results_of_before_a_restart_are_ignored():
    world = world_of()
    world.add(request_of("a", 10, 2, world.now))
    world.launch()
    stale = world.flights[0]
    world.restart()
    assert world.scheduler.complete(results_of(stale, (0.1,)), world.now) == []
    world.launch()
    assert world.scheduler.complete(results_of(stale, (0.1,)), world.now) == []
    world.drain()
    assert world.finished["a"].generated_tokens == 2


def test_a_request_goes_on_in_another_scheduler():
    world = world_of()
    world.add(request_of("long", 3000, 6, world.now))
    world.add(request_of("chat", 5, 6, world.now))
    while len(world.tokens["chat"]) < 3:
        world.launch() or world.land()
    deadline_at = world.scheduler.live.by_id["chat"].milestones.deadline_at
    world.hand_over()
    state = world.scheduler.live.by_id["chat"]
    assert (state.goal, state.output) == (8, 3)
    assert state.milestones.deadline_at == deadline_at
    world.drain()
    assert {name: event.reason for name, event in world.finished.items()} == {
        "long": "length",
        "chat": "length",
    }
    assert world.finished["chat"].recomputed_tokens == 7
    assert world.finished["long"].recomputed_tokens == 0


def test_a_resumed_request_is_taken_by_a_full_queue_but_not_when_it_has_all_its_tokens():
    world = world_of(max_waiting_requests=1)
    world.add(request_of("first", 5, 4, world.now))
    assert world.add(request_of("second", 5, 4, world.now)).status == 429
    known = Resumed(token_ids=pack_tokens([1, 2]))
    second = msgspec.structs.replace(
        request_of("second", 5, 4, world.now), resumed=known
    )
    assert isinstance(world.scheduler.add(second, world.now), Accepted)
    whole = Resumed(token_ids=pack_tokens([1, 2, 3, 4]))
    third = msgspec.structs.replace(request_of("third", 5, 4, world.now), resumed=whole)
    assert world.scheduler.add(third, world.now).status == 400
