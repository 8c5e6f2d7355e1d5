"""Requests with one beginning that arrive together: one leads, the others wait for its pages."""

import pytest
from core_batches import prefilled
from core_inputs import request_of
from core_world import world_of

from medha_actors.core.predictor import ExecutionModel


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("together", [2, 5])
def test_requests_with_one_beginning_that_arrive_together_compute_it_once(
    stages, together
):
    world = world_of(stages)
    # of a length at which it is never sooner to compute the last pages twice
    begins = list(range(200))
    for index in range(together):
        world.add(request_of(f"r{index}", 240, 4, world.now, begins=begins))
    world.drain()
    computed = 0
    for index in range(together):
        computed += sum(stop - start for start, stop in prefilled(world, f"r{index}"))
    assert computed == 200 + 40 * together
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
    firsts = sorted(
        world.finished, key=lambda name: world.finished[name].first_token_at
    )
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
