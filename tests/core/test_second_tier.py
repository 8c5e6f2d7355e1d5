"""Pages that had to make room come back from the second tier. Core_world replays what is saved and
loaded, and checks after every step whose tokens are read and that no slot is used twice."""

import pytest
from core_batches import spans_in
from core_inputs import config_of, grid_of, model_of, request_of
from core_world import world_of

from medha_actors.core.group_load import load_of
from medha_actors.core.kv_plan import LOADED
from medha_actors.core.page_news import News
from medha_actors.core.page_slots import GroupSlots
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.simulator import Simulation

FAST_S = 1e-4  # a page of 4 tokens, which take 4e-3 s to compute


def serve(world, name, prompt, output=1, **more):
    world.add(request_of(name, prompt, output, world.now, **more))
    world.drain()
    return world.finished[name]


def computed(world, name):
    """Positions that were computed for a request."""
    return sum(
        span.stop - span.start
        for span in spans_in(world.batches)
        if span.request_id == name and span.writes
    )


def crowded(stages=1, groups=1, page_s=FAST_S, pages=50, slots=200, **more):
    """Room for 200 tokens, and a tier for 800."""
    model = ExecutionModel.analytic(stages, token_s=1e-3, page_s=page_s)
    return world_of(stages, groups, pages=pages, slots=slots, model=model, **more)


@pytest.mark.parametrize(("stages", "groups"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("output", [1, 9])
def test_a_turn_whose_pages_had_to_make_room_loads_them(stages, groups, output):
    world = crowded(stages, groups)
    serve(world, "a", 150, output)
    for index in range(groups):
        serve(world, f"other-{index}", 190)
    warm = serve(world, "b", 160, output, begins=world.known("a")[:150])
    assert warm.cached_tokens == 148
    assert computed(world, "b") == 12 + output - 1
    tier = world.scheduler.stats().tier
    assert tier.loaded_pages > 30
    assert tier.hits == 4 * tier.loaded_pages
    assert 0 < tier.usage < 1


def test_loading_is_chosen_where_it_is_quicker_than_computing():
    for page_s, loaded in ((3.9e-3, 148), (4.1e-3, 0)):
        world = crowded(page_s=page_s)
        serve(world, "a", 150)
        serve(world, "other", 196)
        begins = world.known("a")[:150]
        accepted = world.add(request_of("b", 152, 1, world.now, begins=begins))
        state = world.scheduler.live.by_id["b"]
        assert accepted.cached_tokens == max(loaded, state.hit)
        world.drain()
        assert computed(world, "b") == 152 - max(
            loaded, world.finished["b"].cached_tokens
        )


def test_a_load_is_work_in_seconds():
    world = crowded(page_s=1e-3)
    serve(world, "a", 150)
    serve(world, "other", 196)
    warm = world.add(request_of("b", 160, 1, world.now, begins=world.known("a")[:150]))
    state = world.scheduler.live.by_id["b"]
    pages = (148 - state.hit) // 4
    assert pages > 30
    assert (
        state.total_work_s == state.remaining_s == pytest.approx(0.012 + pages * 1e-3)
    )
    assert warm.predicted_ttft_s == pytest.approx(state.total_work_s)
    idle_s = state.drag * state.total_work_s
    assert warm.ttft_objective_s == pytest.approx(
        max(0.05, 1.5 * idle_s) + state.grace_s
    )
    assert world.scheduler.stats().backlog_s == pytest.approx(state.total_work_s)
    world.drain()


def test_a_load_is_cut_into_chunks_that_keep_to_the_budget():
    model = ExecutionModel.analytic(token_s=1e-2, page_s=5e-3)
    world = world_of(pages=100, slots=300, model=model, batch_budget_s=0.1)
    serve(world, "a", 300)
    serve(world, "other", 396)
    world.add(request_of("d", 4, 40, world.now))
    world.launch()
    world.land()
    first = len(world.batches)
    serve(world, "b", 320, begins=world.known("a")[:300])
    loads = [load_of(batch.groups[0]) for batch in world.batches[first:]]
    assert sum(load.loaded for load in loads) > 60
    assert sum(load.loaded > 0 for load in loads) > 3
    assert any(load.rows for load in loads if load.loaded), "decodes go on beside it"
    assert all(model.predict(load) <= 0.1 for load in loads if load.loaded)


def test_what_is_loaded_is_shared_with_those_who_came_at_the_same_time():
    world = crowded(2, pages=90, page_s=1e-3, batch_budget_s=0.01)
    begins = list(range(150))
    serve(world, "a", 150, begins=begins)
    serve(world, "other", 350)
    for name in ("b", "c"):
        world.add(request_of(name, 160, 4, world.now, begins=begins))
    world.drain()
    assert world.scheduler.stats().tier.loaded_pages <= 37 + 4, (
        "but for the rest of one batch"
    )
    assert computed(world, "b") == computed(world, "c") == 12 + 3


@pytest.mark.parametrize("slots", [0, 200])
def test_preempted_decodes_come_back_from_the_tier(slots):
    model = ExecutionModel.analytic(token_s=1e-3, page_s=FAST_S)
    world = world_of(pages=16, slots=slots, model=model)
    world.add(request_of("urgent", 16, 40, world.now, ttft_s=0.1))
    world.add(request_of("patient", 16, 40, world.now, ttft_s=100.0))
    world.drain()
    stats = world.scheduler.stats()
    assert stats.evictions_total > 0
    recomputed = world.finished["patient"].recomputed_tokens
    assert (recomputed < 4 * stats.evictions_total) == bool(slots)
    assert recomputed >= 0
    assert world.finished["patient"].cached_tokens == 0


def test_a_page_that_is_in_the_tier_is_not_saved_again():
    world = crowded()
    serve(world, "a", 180)
    saved = []
    for round_ in range(3):
        serve(world, f"b{round_}", 180)
        serve(world, f"a{round_}", 184, begins=world.known("a")[:180])
        saved.append(world.scheduler.stats().tier.saved_pages)
    assert saved[2] - saved[1] < 60, "of b's pages, and hardly any of a's"


def test_no_load_across_salts_nor_for_who_wants_none():
    world = crowded()
    serve(world, "a", 150, cache_salt="x")
    serve(world, "other", 196)
    begins = world.known("a")[:150]
    assert serve(world, "b", 150, begins=begins).cached_tokens == 0
    assert (
        serve(world, "c", 150, begins=begins, cache_salt="x", cache=False).cached_tokens
        == 0
    )
    assert serve(world, "d", 150, begins=begins, cache_salt="x").cached_tokens == 148


def test_what_failed_is_not_in_the_tier():
    world = crowded()
    serve(world, "a", 150)
    serve(world, "other", 196)
    begins = world.known("a")[:150]
    world.add(request_of("bad", 150, 10, world.now, begins=begins))
    while not world.tokens["bad"]:
        world.launch()
        world.land()
    loaded = world.scheduler.stats().tier.loaded_pages
    world.note(world.scheduler.cancel("bad", world.now, "error", "NaN"))
    world.drain()
    assert serve(world, "b", 150, begins=begins).cached_tokens == 148 - 4 * loaded


def test_positions_whose_log_probabilities_are_asked_for_are_not_loaded():
    world = crowded()
    serve(world, "a", 150)
    serve(world, "other", 196)
    serve(world, "b", 150, begins=world.known("a")[:150], prompt_logprobs=1)
    assert computed(world, "b") == 150


@pytest.mark.parametrize(("found", "cached"), [((), 0), ((0,), 148)])
def test_hits_of_a_lost_group_are_found_again_with_its_file(found, cached):
    world = crowded()
    serve(world, "a", 150)
    serve(world, "other", 196)
    serve(world, "third", 196)  # so that all of a is in the tier
    world.restart({0}, found)
    assert serve(world, "b", 150, begins=world.known("a")[:150]).cached_tokens == cached


def test_what_was_being_saved_when_the_pipeline_died_is_forgotten():
    world = crowded(2)
    serve(world, "a", 150)
    world.add(request_of("other", 196, 1, world.now))
    slots = world.scheduler.live.kv.store.slots[0]
    while not slots.unsettled:  # until a chunk takes what "a" has left
        world.launch()
    saved = len(slots.key_of)
    world.restart(())
    assert saved
    assert not slots.key_of
    world.drain()


def test_a_load_in_flight_when_the_pipeline_dies_is_done_again():
    for steps in range(6):
        world = crowded(2, batch_budget_s=0.01, page_s=1e-3)
        serve(world, "a", 150)
        serve(world, "other", 196)
        world.add(request_of("b", 160, 3, world.now, begins=world.known("a")[:150]))
        for _ in range(steps):
            world.launch()
        world.restart(())
        world.drain()
        assert world.finished["b"].reason == "length"
        assert world.finished["b"].cached_tokens >= 100


def test_a_tier_of_a_few_slots_pushes_out_what_it_was_about_to_load():
    """The taken page goes to the slot that would have been loaded last."""
    for slots in range(2, 12):
        world = crowded(slots=slots)
        serve(world, "a", 40)
        serve(world, "other", 196)
        warm = serve(world, "b", 60, begins=world.known("a")[:40])
        assert warm.cached_tokens + computed(world, "b") == 60
        serve(world, "c", 60, begins=world.known("a")[:40])


def test_slots_give_way_to_the_longest_unused():
    slots = GroupSlots(2, News())
    assert slots.keep(7, b"a") is None
    assert slots.keep(8, b"b") is None
    assert slots.touch(b"a")
    assert slots.keep(9, b"c") == b"b"
    assert slots.reach([b"a", b"c", b"b"]) == [0, 1]
    assert slots.load(3, b"c")
    assert not slots.load(4, b"b")
    moves = slots.send()
    assert [(move.page, move.slot, move.load) for move in moves] == [
        (7, 0, False),
        (8, 1, False),
        (9, 1, False),
        (3, 1, True),
    ]
    slots.settle(moves[:2])
    assert slots.restart(died=False, found=False) == [b"c"], (
        "its save has not come back"
    )
    assert slots.reach([b"a"]) == [0]
    assert slots.load(3, b"a")
    assert slots.restart(died=False, found=False) == []
    assert slots.load(3, b"a")
    assert slots.restart(died=True, found=True) == [b"a"], (
        "it may be what the group died of"
    )
    assert slots.keep(5, b"d") is None
    slots.settle(slots.send())
    assert slots.restart(died=True, found=True) == []
    assert slots.restart(died=True, found=False) == [b"d"]
    assert sorted(slots.free) == [0, 1]


def test_what_loads_really_take_is_learned_apart_from_computing():
    model = model_of(page_s=1e-3)
    for _ in range(20):
        model.observe(0.002, 0.002 + model.loading_s(20), 0.002 + 0.06, True, 0.02)
    assert model.moves.scale == pytest.approx(3.0)
    assert model.loading_s(10) == pytest.approx(0.03)
    assert model.prefill.scale == 1.0


def test_the_simulator_loads_as_the_server_does():
    model = ExecutionModel.analytic(token_s=1e-3, page_s=FAST_S)
    begins = list(range(900))
    requests = [
        request_of("a", 900, 1, at=0.0, begins=begins),
        request_of("other", 950, 1, at=10.0),
        request_of("b", 1000, 1, at=20.0, begins=begins),
    ]
    for slots, ttft_s in ((0, 0.75), (400, 0.12)):
        result = Simulation(config_of(), grid_of(pages=260, slots=slots), model).run(
            requests
        )
        assert result.requests["b"].ttft_s == pytest.approx(ttft_s, rel=0.4)


def test_who_can_load_does_not_wait_for_one_who_computes_the_same():
    """The tier of group 1 has what a slow leader in group 0 has still to compute."""
    for page_s, waits in ((1e-4, False), (1.0, True)):
        world = crowded(1, 2, pages=120, cutoff=480, page_s=page_s, batch_budget_s=0.02)
        begins = list(range(400))
        store = world.scheduler.live.kv.store
        world.add(request_of("leader", 404, 1, world.now, begins=begins))
        for _ in range(3):
            world.launch()
            world.land()
        leader = world.scheduler.live.by_id["leader"]
        keys = [leader.keys[page] for page in range(100)]
        slots = store.slots[1 - leader.pieces[0].group]
        for key in keys:
            slots.keep(0, key)
        world.add(request_of("follower", 404, 1, world.now, begins=begins))
        follower = world.scheduler.live.by_id["follower"]
        hits = world.scheduler.live.hits
        assert (follower.stored > follower.hit) == (not waits)
        assert (hits.leader_of(follower, 0.0) is leader) == waits


def test_a_decision_looks_up_so_many_pages_and_no_more():
    world = crowded(page_s=1e-6, pages=1000, slots=2000, length=8000)
    serve(world, "a", 3600)
    serve(world, "other", 3900)
    first = len(world.batches)
    accepted = world.add(
        request_of("b", 3620, 1, world.now, begins=world.known("a")[:3600])
    )
    assert accepted.cached_tokens == 3600
    world.launch()
    state = world.scheduler.live.by_id["b"]
    assert state.stored == 3600, "the rest is to be loaded too"
    assert state.remaining_s < 0.1
    world.drain()
    loads = [load_of(batch.groups[0]).loaded for batch in world.batches[first:]]
    assert max(loads) == LOADED
    assert sum(loads) > LOADED
    assert computed(world, "b") == 20
