"""The prefix cache: what is found, what it saves, and what the policies make of it. Core_world
checks after every step that nobody reads other tokens or writes to what others read."""

import random
from itertools import pairwise

import pytest
from core_inputs import config_of, grid_of, request_of
from core_world import spans_of, world_of

from medha_actors.core.kv_plan import KvPlan
from medha_actors.core.page_keys import PageKeys, root_key
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.request import RequestState, Timeline
from medha_actors.core.simulator import Simulation
from medha_actors.messages import pack_tokens


def serve(world, name, prompt, output=4, **more):
    """One request from its arrival to its end; its last event."""
    world.add(request_of(name, prompt, output, world.now, **more))
    world.drain()
    return world.finished[name]


def prefilled(world, name):
    """Positions that were computed for a request before its first token, as ranges."""
    spans = [
        span
        for b in world.batches
        for span in spans_of(b)
        if span.request_id == name and span.writes
    ]
    return [(span.start, span.stop) for span in spans if not span.sample or span.index == 0]


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
    assert warm.cached_tokens == 76, "79 have been computed: the last token's KV is never needed"


def test_work_deadline_and_prediction_count_what_is_not_cached():
    world = world_of(model=ExecutionModel.analytic(token_s=1e-3))
    serve(world, "a", 3000, 1)
    begins = world.known("a")[:3000]
    warm = world.add(request_of("warm", 3040, 1, world.now, begins=begins))
    state = world.scheduler.live.by_id["warm"]
    assert warm.cached_tokens == state.hit == 3000
    assert warm.predicted_ttft_s == pytest.approx(0.04)
    assert warm.ttft_objective_s == pytest.approx(0.06)
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


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("together", [2, 5])
def test_requests_with_one_beginning_that_arrive_together_compute_it_once(stages, together):
    world = world_of(stages)
    begins = list(range(400))
    for index in range(together):
        world.add(request_of(f"r{index}", 440, 4, world.now, begins=begins))
    world.drain()
    computed = sum(
        stop - start for i in range(together) for start, stop in prefilled(world, f"r{i}")
    )
    assert computed == 400 + 40 * together
    assert all(event.reason == "length" for event in world.finished.values())


def test_who_waits_for_another_gives_it_its_turn():
    """The leader has all the time in the world, the follower has none: the leader runs at once."""
    world = world_of(model=ExecutionModel.analytic(token_s=1e-3))
    begins = list(range(400))
    world.add(request_of("leader", 440, 1, world.now, begins=begins, ttft_s=1000.0))
    world.launch()
    world.add(request_of("other", 2000, 1, world.now, ttft_s=5.0))
    world.add(request_of("follower", 440, 1, world.now, begins=begins, ttft_s=0.5))
    world.drain()
    firsts = sorted(world.finished, key=lambda name: world.finished[name].first_token_at)
    assert firsts[-1] == "other"
    assert world.finished["follower"].cached_tokens == 400


def test_when_the_leader_goes_the_follower_goes_on():
    for at in range(12):
        world = world_of(2, max_chunk_tokens=64)
        begins = list(range(400))
        for name in ("leader", "follower", "third"):
            world.add(request_of(name, 440, 4, world.now, begins=begins))
        for step in range(12):
            if step == at:
                world.cancel("leader")
            world.launch()
            world.land()
        world.drain()
        computed = sum(stop - start for start, stop in prefilled(world, "follower"))
        assert world.finished["follower"].reason == "length"
        assert world.finished["follower"].cached_tokens + computed == 440


def test_no_hit_across_salts_nor_for_who_wants_none():
    world = world_of()
    serve(world, "a", 60, 1, cache_salt="x")
    begins = world.known("a")[:60]
    assert serve(world, "b", 60, begins=begins).cached_tokens == 0
    assert serve(world, "c", 60, begins=begins, cache_salt="x", cache=False).cached_tokens == 0
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
    assert serve(world, "new-again", 80, begins=world.known("new")[:80]).cached_tokens == 76
    world = world_of(pages=50)
    serve(world, "old", 80, 1)
    serve(world, "new", 80, 1)
    serve(world, "third", 60, 1)  # five pages
    warm = world.add(request_of("old-again", 80, 1, world.now, begins=world.known("old")[:80]))
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
        return world, sorted(world.finished, key=lambda name: world.finished[name].finished_at)

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
    spans = [span for batch in world.batches for span in spans_of(batch) if span.request_id == "b"]
    assert len({span.groups for span in spans if len(span.groups) == 3}) == 1


def test_a_hit_is_left_for_a_group_that_is_sooner_done():
    """Group 0 has 40 tokens of the prompt, and a long prefill to do; group 1 has nothing to do."""
    for shared, hit in ((40, 0), (2000, 2000)):
        world = world_of(1, 2, pages=4000, cutoff=8000)
        begins = list(range(shared))
        serve(world, "a", shared, 1, begins=begins)
        world.add(request_of("long", 1500, 1, world.now, begins=[*begins, 0], ttft_s=60.0))
        world.launch()
        group = world.scheduler.live.by_id["long"].pieces[0].group
        world.add(request_of("warm", shared + 20, 1, world.now, begins=begins, ttft_s=0.1))
        world.launch()
        state = world.scheduler.live.by_id["warm"]
        assert (state.pieces[0].group == group) == bool(hit)
        world.drain()
        assert world.finished["warm"].cached_tokens == hit


def test_penalties_are_told_the_tokens_of_a_hit():
    world = world_of(2)
    serve(world, "a", 60, 1)
    serve(world, "b", 60, begins=world.known("a")[:60], repetition_penalty=1.3)
    opened = [
        sequence
        for batch in world.batches
        for message in batch.groups
        for sequence in message.opened
        if sequence.request_id == "b"
    ]
    assert [len(sequence.token_ids) // 4 for sequence in opened] == [56]


def test_figures_count_tokens_looked_for_and_found():
    world = world_of()
    serve(world, "a", 60, 1)
    serve(world, "b", 60, begins=world.known("a")[:60])
    stats = world.scheduler.stats()
    assert (stats.prefix_cache_queries_total, stats.prefix_cache_hits_total) == (120, 56)
    assert stats.kv_usage == 0
    assert stats.kv_cached == pytest.approx((60 // 4) / 2000)


def test_keys_are_chained_over_model_salt_and_tokens():
    def keys(tokens, salt="", model="m", adapter=""):
        packed = pack_tokens(tokens)
        made = PageKeys(root_key(model, adapter, salt), 4, lambda a, b: packed[4 * a : 4 * b])
        return [made[page] for page in range(len(tokens) // 4)]

    plain = keys(range(12))
    assert plain == keys(range(12))
    assert keys([*range(8), 99, 9, 10, 11])[:2] == plain[:2]
    others = [
        keys(range(12), salt="x"),
        keys(range(12), model="n"),
        keys(range(12), adapter="x"),
        keys([99, *range(1, 12)]),
    ]
    for other in others:
        assert not set(other) & set(plain)
    assert root_key("a", "bc", "") != root_key("ab", "c", "")
    assert all(one != other for one, other in pairwise(plain))


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
    requests = [request_of(f"r{i}", 1000, 2, at=10.0 * i, begins=begins) for i in range(3)]
    result = Simulation(config_of(), grid_of(pages=2000), model).run(requests)
    ttfts = [result.requests[f"r{i}"].ttft_s for i in range(3)]
    assert ttfts[0] == pytest.approx(1.0)
    assert ttfts[1:] == [pytest.approx(0.1)] * 2


def test_hits_are_right_whatever_was_cached_before():
    """A page table against sets of prefixes: what KvPlan finds is the longest common beginning."""
    rng = random.Random(5)
    plan = KvPlan(grid_of(pages=400))
    cached = []
    for number in range(60):
        base = rng.choice(cached)[: rng.randint(0, 40)] if cached and rng.random() < 0.8 else []
        tokens = base + [rng.randrange(3) for _ in range(rng.randint(1, 40))]
        state = RequestState(
            request=request_of(f"r{number}", len(tokens), begins=tokens),
            serial=number,
            timeline=Timeline(0.0, 1.0),
            tpot_s=1.0,
            timeout_at=9e9,
            prompt=len(tokens),
            goal=len(tokens),
        )
        state.keys = PageKeys(root_key("m", "", ""), 4, state.tokens)
        common = max((_common(tokens, other) for other in cached), default=0)
        found = plan.hits(state.keys, state.hit_limit)
        assert (found[0].tokens if found else 0) == min(common, len(tokens) - 1) // 4 * 4
        pieces = plan.place(state.goal, [0], [0], *found)
        assert pieces is not None
        state.dispatched = state.computed = found[0].tokens if found else 0
        plan.reserve(state, pieces)
        plan.take(state, state.goal)
        state.computed = state.goal
        plan.publish(state)
        plan.release(state)
        assert plan.available(0) == 400
        cached.append(tokens[: len(tokens) // 4 * 4])


@pytest.mark.parametrize(
    ("cached", "runs"),
    [
        (({0, 1, 2, 3, 4, 5}, {2}), [(0, 0, 6)]),
        (({0, 1, 2, 3}, {2, 3, 4, 5, 6, 7}), [(0, 0, 2), (1, 8, 6)]),
        (({0, 1, 2, 3}, {4, 5}), [(0, 0, 4), (1, 16, 2)]),
        (({0}, {0, 1, 2}), [(1, 0, 3)]),
        (({0}, {1, 2, 3}), [(0, 0, 1)]),  # a piece below the cutoff is not left
    ],
)
def test_a_hit_goes_to_another_group_where_that_leads_further(cached, runs):
    plan = KvPlan(grid_of(groups=2, pages=20, cutoff=8))
    packed = pack_tokens(range(40))
    keys = PageKeys(root_key("m", "", ""), 4, lambda a, b: packed[4 * a : 4 * b])
    for group, pages in enumerate(cached):
        for page in pages:
            plan.store.publish(group, plan.store.take(group), keys[page])
    found = plan.hits(keys, 40)[0]
    assert [(run.group, run.start, len(run.pages)) for run in found.runs] == runs


def _common(one, other):
    count = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        count += 1
    return count


@pytest.mark.parametrize("policy", ["lars", "spf", "lrs"])
def test_who_cannot_ride_along_is_not_looked_up(policy, monkeypatch):
    """A decision walks the hits of a few requests, not of all that wait behind a long prefill."""
    world = world_of(policy=policy, model=ExecutionModel.analytic(token_s=1e-3))
    serve(world, "a", 3000, 1)
    begins = world.known("a")[:3000]
    for index in range(100):
        world.add(request_of(f"r{index}", 3900, 1, world.now, begins=begins))
    looked_up = 0
    kv = world.scheduler.live.kv
    hits = kv.hits

    def counted(keys, limit):
        nonlocal looked_up
        looked_up += 1
        return hits(keys, limit)

    monkeypatch.setattr(kv, "hits", counted)
    for _ in range(3):
        looked_up = 0
        world.launch()
        assert looked_up <= 10
