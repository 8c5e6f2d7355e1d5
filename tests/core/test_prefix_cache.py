"""The prefix cache: what is found, what it saves, and what the policies make of it. Core_world
checks after every step that nobody reads other tokens or writes to what others read."""

import pytest
from core_batches import opened_in, prefilled, spans_in, spans_of
from core_inputs import config_of, grid_of, request_of
from core_world import world_of

from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.simulator import Simulation


def serve(world, name, prompt, output=4, **more):
    """One request from its arrival to its end; its last event."""
    world.add(request_of(name, prompt, output, world.now, **more))
    world.drain()
    return world.finished[name]


def first_computed(world, name):
    return prefilled(world, name)[0][0]


@pytest.mark.parametrize(("stages", "groups"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("shared", [39, 40, 41, 43, 44, 60])
def test_a_hit_is_in_whole_pages_and_leaves_at_least_one_token(stages, groups, shared):
    world = world_of(stages, groups)
    serve(world, "a", 60, 1)
    begins = world.known("a")[:shared]
    warm = serve(world, "b", 60, begins=begins)
    expected = min(shared, 59) // 4 * 4
    assert (warm.cached_tokens, first_computed(world, "b")) == (expected, expected)
    assert warm.prompt_tokens == 60


def test_the_next_turn_of_a_chat_finds_prompt_and_answer():
    world = world_of(2)
    serve(world, "turn-1", 50, 30)
    history = world.known("turn-1")
    warm = serve(world, "turn-2", 100, begins=history)
    assert warm.cached_tokens == 76, (
        "79 have been computed: the last token's KV is never needed"
    )


def test_work_deadline_and_prediction_count_what_is_not_cached():
    world = world_of(model=ExecutionModel.analytic(token_s=1e-3))
    serve(world, "a", 3000, 1)
    begins = world.known("a")[:3000]
    warm = world.add(request_of("warm", 3040, 1, world.now, begins=begins))
    state = world.scheduler.live.by_id["warm"]
    assert warm.cached_tokens == state.hit == 3000
    assert warm.predicted_ttft_s == pytest.approx(0.04)
    assert warm.ttft_objective_s == pytest.approx(0.06 + world.grace_s)
    assert state.total_work_s == state.remaining_s == pytest.approx(0.04)
    assert world.scheduler.stats().backlog_s == pytest.approx(0.04)
    world.launch()
    assert world.batches[-1].prefill_tokens == 40
    world.drain()


@pytest.mark.parametrize("policy", ["lars", "spf", "hrrn", "lrs", "edf", "relegation"])
def test_a_warm_turn_overtakes_a_cold_prefill_which_loses_nothing(policy):
    world = world_of(policy=policy, model=ExecutionModel.analytic(token_s=1e-3))
    serve(world, "a", 3000, 1)
    begins = world.known("a")[:3000]
    world.add(request_of("cold", 3000, 1, world.now))
    world.launch()
    world.add(request_of("warm", 3040, 1, world.now, begins=begins))
    world.launch()
    assert {span.request_id for span in spans_of(world.batches[-1])} >= {"warm"}
    world.drain()
    assert world.finished["warm"].first_token_at < world.finished["cold"].first_token_at
    spans = prefilled(world, "cold")
    assert [start for start, _ in spans] == [0, *[stop for _, stop in spans[:-1]]]


def test_no_hit_across_salts_nor_for_who_wants_none():
    world = world_of()
    serve(world, "a", 60, 1, cache_salt="x")
    begins = world.known("a")[:60]
    assert serve(world, "b", 60, begins=begins).cached_tokens == 0
    assert (
        serve(world, "c", 60, begins=begins, cache_salt="x", cache=False).cached_tokens
        == 0
    )
    assert serve(world, "d", 60, begins=begins, cache_salt="x").cached_tokens == 56
    private = list(range(7000, 7060))
    serve(world, "e", 60, begins=private, cache=False)
    assert serve(world, "f", 60, begins=private).cached_tokens == 0


def test_without_the_prefix_cache_nothing_is_found():
    world = world_of(prefix_cache=False)
    serve(world, "a", 60, 1)
    assert serve(world, "b", 60, begins=world.known("a")[:60]).cached_tokens == 0
    assert world.scheduler.stats().kv_cached == 0
    assert world.scheduler.stats().prefix_cache_queries_total == 0


def test_positions_whose_log_probabilities_are_asked_for_are_computed():
    world = world_of()
    serve(world, "a", 60, 1)
    begins = world.known("a")[:60]
    assert serve(world, "b", 60, begins=begins, prompt_logprobs=1).cached_tokens == 0
    assert first_computed(world, "b") == 0
    assert serve(world, "c", 60, begins=begins).cached_tokens == 56


def test_what_failed_is_found_by_nobody():
    world = world_of()
    world.add(request_of("bad", 60, 10, world.now))
    while not world.tokens["bad"]:
        world.launch()
        world.land()
    world.note(world.scheduler.cancel("bad", world.now, "error", "NaN"))
    world.drain()
    assert serve(world, "b", 60, begins=world.known("bad")[:60]).cached_tokens == 0


def test_the_longest_unused_goes_first_and_the_beginning_of_a_sequence_last():
    world = world_of(pages=50)  # 200 tokens
    serve(world, "old", 80, 1)
    serve(world, "new", 80, 1)
    serve(world, "third", 100, 1)  # needs 15 of 20 pages that the old one left
    assert (
        serve(world, "new-again", 80, begins=world.known("new")[:80]).cached_tokens
        == 76
    )
    world = world_of(pages=50)
    serve(world, "old", 80, 1)
    serve(world, "new", 80, 1)
    serve(world, "third", 60, 1)  # five pages
    warm = world.add(
        request_of("old-again", 80, 1, world.now, begins=world.known("old")[:80])
    )
    assert warm.cached_tokens == 60, "its deepest pages went"
    world.drain()


def test_an_evicted_request_computes_again_only_what_had_to_go():
    world = world_of(pages=16)
    world.add(request_of("urgent", 16, 40, world.now, ttft_s=0.1))
    world.add(request_of("patient", 16, 40, world.now, ttft_s=100.0))
    world.drain()
    stats = world.scheduler.stats()
    recomputed = world.finished["patient"].recomputed_tokens
    assert stats.evictions_total > 0
    without = world_of(pages=16, prefix_cache=False)
    without.add(request_of("urgent", 16, 40, without.now, ttft_s=0.1))
    without.add(request_of("patient", 16, 40, without.now, ttft_s=100.0))
    without.drain()
    assert 0 < recomputed < without.finished["patient"].recomputed_tokens


def test_a_waiting_request_keeps_its_hit_while_that_is_cheaper_than_computing_it_again():
    """The cold one is first in the order, but would evict what the warm one has found."""

    def order(warm_rest):
        world = world_of(pages=100, policy="fcfs_chunked", tpot_s=10.0)
        serve(world, "a", 300, 1)
        begins = world.known("a")[:300]
        world.add(request_of("cold", 380, 1, world.now, ttft_s=100.0))
        world.add(request_of("warm", 300 + warm_rest, 1, world.now, begins=begins))
        world.drain()
        return world, sorted(
            world.finished, key=lambda name: world.finished[name].finished_at
        )

    world, names = order(20)
    assert names[1:] == ["warm", "cold"]
    assert world.finished["warm"].cached_tokens == 300


@pytest.mark.parametrize("lost", [0, 1])
def test_when_a_group_is_lost_hits_in_the_others_stay(lost):
    world = world_of(1, 2)
    world.add(request_of("a", 60, 8, world.now))
    world.add(request_of("b", 60, 8, world.now))
    world.launch()
    groups = {name: world.scheduler.live.by_id[name].pieces[0].group for name in "ab"}
    assert sorted(groups.values()) == [0, 1]
    world.drain()
    world.restart({lost})
    for name, group in groups.items():
        warm = serve(world, f"{name}-again", 60, begins=world.known(name)[:60])
        assert warm.cached_tokens == (0 if group == lost else 56)


@pytest.mark.parametrize(("cutoff", "found"), [(40, 100), (16, 100), (18, 16)])
def test_a_hit_lies_on_several_groups_where_pieces_begin_with_pages(cutoff, found):
    world = world_of(2, 3, cutoff=cutoff)
    serve(world, "a", 100, 1)
    warm = serve(world, "b", 120, 9, begins=world.known("a")[:100])
    assert warm.cached_tokens == found
    spans = [span for span in spans_in(world.batches) if span.request_id == "b"]
    assert len({span.groups for span in spans if len(span.groups) == 3}) == 1


@pytest.mark.parametrize(
    ("priority", "shared", "hit"),
    # 1,500 tokens go first: 40 are sooner computed elsewhere, 2,000 are not
    [(-1, 40, 0), (-1, 2000, 2000), (0, 40, 40)],
)
def test_a_hit_is_left_for_a_group_that_is_sooner_done(priority, shared, hit):
    """One group has the beginning of the prompt, and a long prefill to do, which may be one that
    the prompt overtakes; the other one has nothing to do."""
    world = world_of(1, 2, pages=4000, cutoff=8000)
    begins = list(range(shared))
    serve(world, "a", shared, 1, begins=begins)
    behind = [*begins, 0]
    world.add(
        request_of("long", 1500, 1, world.now, 60.0, priority=priority, begins=behind)
    )
    world.launch()
    world.add(request_of("warm", shared + 20, 1, world.now, begins=begins, ttft_s=0.1))
    world.drain()
    assert world.finished["warm"].cached_tokens == hit


def test_penalties_are_told_the_tokens_of_a_hit():
    world = world_of(2)
    serve(world, "a", 60, 1)
    serve(world, "b", 60, begins=world.known("a")[:60], repetition_penalty=1.3)
    opened = [
        sequence for sequence in opened_in(world.batches) if sequence.request_id == "b"
    ]
    assert [len(sequence.token_ids) // 4 for sequence in opened] == [56]


def test_figures_count_tokens_looked_for_and_found():
    world = world_of()
    serve(world, "a", 60, 1)
    serve(world, "b", 60, begins=world.known("a")[:60])
    stats = world.scheduler.stats()
    assert (stats.prefix_cache_queries_total, stats.prefix_cache_hits_total) == (
        120,
        56,
    )
    assert stats.kv_usage == 0
    assert stats.kv_cached == pytest.approx((60 // 4) / 2000)


def test_a_shared_page_is_never_the_one_that_is_written():
    """A prompt that is cached whole, to its last full page: that page is computed again, beside."""
    world = world_of()
    serve(world, "a", 64, 1)
    world.add(request_of("b", 64, 8, world.now, begins=world.known("a")[:64]))
    world.add(request_of("c", 64, 8, world.now, begins=world.known("a")[:64]))
    world.launch()
    world.launch()
    states = [world.scheduler.live.by_id[name] for name in ("b", "c")]
    shared = [state.pieces[0].pages[:15] for state in states]
    assert shared[0] == shared[1]
    assert states[0].pieces[0].pages[15:] != states[1].pieces[0].pages[15:]
    world.drain()


def test_a_hit_never_takes_a_suspect_to_where_it_must_run_alone():
    """Its danger begins at 40, and by then somebody else has computed 40 tokens of it again;
    World.check_alone sees to the rest."""
    world = world_of(max_chunk_tokens=40, max_running_requests=1)
    begins = list(range(64))
    world.add(request_of("suspect", 64, 4, world.now, begins=begins))
    world.launch()
    world.land()
    world.launch()
    world.restart()
    assert world.scheduler.live.by_id["suspect"].danger == range(40, 64)
    world.add(request_of("urgent", 50, 4, world.now, begins=begins[:40], priority=-1))
    world.drain()
    assert prefilled(world, "suspect")[-2:] == [(36, 40), (40, 64)]


def test_the_simulator_shares_pages_as_the_server_does():
    model = ExecutionModel.analytic(token_s=1e-3)
    begins = list(range(900))
    requests = [
        request_of(f"r{i}", 1000, 2, at=10.0 * i, begins=begins) for i in range(3)
    ]
    result = Simulation(config_of(), grid_of(pages=2000), model).run(requests)
    ttfts = [result.requests[f"r{i}"].ttft_s for i in range(3)]
    assert ttfts[0] == pytest.approx(1.0)
    assert ttfts[1:] == [pytest.approx(0.1)] * 2


@pytest.mark.parametrize("policy", ["lars", "spf", "lrs"])
def test_who_cannot_ride_along_is_not_looked_up(policy, monkeypatch):
    """A decision walks the hits of a few requests, not of all that wait behind a long prefill."""
    world = world_of(policy=policy, model=ExecutionModel.analytic(token_s=1e-3))
    serve(world, "a", 3000, 1)
    begins = world.known("a")[:3000]
    for index in range(100):
        world.add(request_of(f"r{index}", 3900, 1, world.now, begins=begins))
    looked_up = 0
    search = world.scheduler.live.kv.search
    hits = search.hits

    def counted(keys, limit):
        nonlocal looked_up
        looked_up += 1
        return hits(keys, limit)

    monkeypatch.setattr(search, "hits", counted)
    for _ in range(3):
        looked_up = 0
        world.launch()
        assert looked_up <= 10
