"""Groups beside each other: whom they wait for, how the load spreads, and disturbances at every
point."""

import itertools
import random

import pytest
from core_batches import messages_of, spans_in
from core_inputs import config_of, grid_of, request_of
from core_world import world_of

from medha_actors.core.chunking import LONE_BUDGETS
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.simulator import Simulation


def simulate(requests, stages, groups, model, cutoff=None):
    grid = grid_of(stages, groups, pages=20_000, page=16, cutoff=cutoff, length=200_000)
    return Simulation(
        config_of(tpot_s=0.1, batch_budget_s=0.1 / stages), grid, model
    ).run(requests)


def test_groups_that_merge_agree_on_the_rows_of_every_run():
    """A in groups 0 and 1, B in 1 and 2, C in 0 and 1: group 0, which has no B, must not take A and
    C together."""
    world = world_of(1, 3, cutoff=20, pages=300)
    for index in range(12):
        world.add(request_of(f"r{index}", 25 + index, 30, world.now))
        world.launch()
        world.land()
    world.drain()  # World.replay compares the groups' messages
    runs = [
        [span.groups for span in message.spans if span.groups]
        for message in itertools.chain.from_iterable(map(messages_of, world.batches))
    ]
    assert any(len(set(found)) > 1 and len(set(found)) < len(found) for found in runs)


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_who_lives_on_one_group_waits_for_anothers_work_within_the_budget_only(stages):
    model = ExecutionModel.analytic(stages, token_s=1e-4, pair_s=1e-8, kv_s=1e-6)
    budget_s = 0.1 / stages
    rng = random.Random(stages)
    shorts = [
        request_of(f"s{i}", rng.randint(5, 60), 12, at=0.5 + 0.3 * (i + rng.random()))
        for i in range(30)
    ]
    result = simulate([request_of("long", 60_000, 2), *shorts], stages, 2, model)
    long = result.requests["long"].finished
    assert long.first_token_at > shorts[-1].arrived_at, (
        "all of them arrived beside the long prefill"
    )
    for short in shorts:
        log = result.requests[short.id]
        # One batch in stage 0 ends, then there is at most one before it in each stage;
        # those may be a lone request's.
        assert log.ttft_s <= LONE_BUDGETS * (stages + 1) * budget_s
        gaps = [
            after - before
            for before, after in zip(log.token_times, log.token_times[1:], strict=False)
        ]
        assert max(gaps) <= (stages + 1) * budget_s


def test_groups_serve_short_traffic_like_replicas():
    def makespan_s(groups):
        requests = [
            request_of(f"r{index}", 80 + index % 40, 20) for index in range(400)
        ]
        return simulate(
            requests, 1, groups, ExecutionModel.analytic(token_s=1e-3, kv_s=1e-7), 8192
        ).ended_at

    alone_s = makespan_s(1)
    for groups in (2, 4):
        # some is lost at the end, and in moving step by step
        assert alone_s / makespan_s(groups) > 0.8 * groups


@pytest.mark.parametrize("stages", [1, 2])
def test_running_requests_stay_spread_while_they_come_and_go(stages):
    rng = random.Random(3)
    world = world_of(stages, 4, pages=4000)
    spreads = []
    for index in range(120):
        world.add(
            request_of(f"r{index}", rng.randint(5, 60), rng.randint(5, 60), world.now)
        )
        for _ in range(rng.randint(1, 3)):
            world.launch()
            world.land()
        running = world.scheduler.live.running()
        spreads.append(max(running) - min(running))
    assert sum(spreads) / len(spreads) < 2.2, "of some seven in each"
    world.drain()


@pytest.mark.parametrize(
    ("stages", "groups", "cutoff", "pages"),
    [(1, 1, None, 38), (2, 2, 16, 28), (2, 3, 10, 26), (1, 3, 7, 26)],
)
def test_preempting_at_every_point(stages, groups, cutoff, pages):
    """An urgent request takes the turn of a long one's prefill, or its pages: nothing is lost,
    doubled or leaked."""

    def run(at):
        more = {"max_chunk_tokens": 16, "min_chunk_tokens": 8, "space_sharing": False}
        # that is one chunk
        world = world_of(
            stages, groups, pages, cutoff, batch_budget_s=0.02 / stages, **more
        )
        world.add(request_of("long", 100, 14, world.now, ttft_s=50.0))
        step = 0
        while world.scheduler.live.by_id:
            for act in (world.launch, world.land):
                if step == at:
                    world.add(request_of("urgent", 33, 30, world.now, ttft_s=0.05))
                step += 1
                act()
        assert all(event.reason == "length" for event in world.finished.values())
        assert all(
            world.scheduler.live.kv.available(group) == pages for group in range(groups)
        )
        stats = world.scheduler.stats()
        return step, stats.preemptions_total, stats.evictions_total

    disturbed = [run(at)[1:] for at in range(run(10**6)[0])]
    assert any(preemptions for preemptions, _ in disturbed)
    assert any(evictions for _, evictions in disturbed)


@pytest.mark.parametrize("lost", [None, (0,), (1,), (2,)])
def test_cancelling_and_losing_a_group_at_every_point_while_groups_are_onboarded(lost):
    """Decodes that grow over two cutoffs; one of them goes, then a group, at each step."""

    def run(at):
        world = world_of(
            2, 3, pages=40, cutoff=9, max_chunk_tokens=16, min_chunk_tokens=8
        )
        for name in ("gone", "stays", "short"):
            world.add(request_of(name, 5, 4 if name == "short" else 24, world.now))
        step = 0
        while world.scheduler.live.by_id:
            for act in (world.launch, world.land):
                if step == at:
                    world.cancel("gone")
                elif step == at + 1:
                    world.restart(lost)
                step += 1
                act()
        assert len(world.tokens["stays"]) == 24
        assert all(world.scheduler.live.kv.available(group) == 40 for group in range(3))
        return step, {span.groups for span in spans_in(world.batches)}

    steps, seen = run(10**6)
    assert {len(groups) for groups in seen} == {0, 2, 3}
    for at in range(steps):
        run(at)
