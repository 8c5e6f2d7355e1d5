"""Batches that have the grid to themselves: which, how long they take, and who waits for them."""

from __future__ import annotations

import pytest
from core_batches import messages_of, spans_of
from core_inputs import config_of, grid_of, model_of, request_of
from core_world import world_of
from hypothesis import given
from hypothesis import strategies as st

from medha_actors.core.chunking import STREAMING_LOSS
from medha_actors.core.simulator import Simulation


def lending(stages=2, **more):
    return world_of(stages, model=model_of(stages, lends=True), **more)


def are_alone(world):
    """Of every batch so far, whether it had the grid to itself."""
    return [
        all(message.alone for message in messages_of(batch)) for batch in world.batches
    ]


def test_all_that_there_is_to_do_goes_alone_and_who_comes_later_waits():
    world = lending()
    world.add(request_of("a", 40))
    world.add(request_of("b", 9))
    assert world.launch()
    assert are_alone(world) == [True]
    assert {span.request_id for span in spans_of(world.batches[0])} == {"a", "b"}
    world.add(request_of("late", 9))
    assert not world.launch()
    world.land()
    assert world.launch()
    assert {span.request_id for span in spans_of(world.batches[1])} == {
        "a",
        "b",
        "late",
    }
    assert are_alone(world) == [True, True]
    world.drain()


def test_with_as_many_decodes_as_stages_can_share_each_stage_has_its_own():
    world = lending()
    for name in "abcd":
        world.add(request_of(name, 4, output=20))
    world.drain()
    assert are_alone(world)[0]
    assert not any(are_alone(world)[2:20])


@pytest.mark.parametrize("rows", [1, 3])
def test_decodes_are_predicted_to_take_their_part_of_the_time(rows):
    seconds = []
    for lends in (False, True):
        world = world_of(2, model=model_of(2, lends=lends))
        for number in range(rows):
            world.add(request_of(f"d{number}", 4, output=9))
        world.drain()
        batch = world.batches[2]
        assert batch.decode_tokens == rows
        assert are_alone(world)[2] == lends
        seconds.append(batch.predicted_s)
    assert seconds[1] == pytest.approx(0.5 * seconds[0])


def test_a_decode_that_several_processors_would_not_speed_up_goes_with_one_a_stage():
    world = world_of(2, model=model_of(2, lends=True, of_decodes=1.1))
    world.add(request_of("d", 4, output=9))
    world.drain()
    assert not any(are_alone(world)[1:])


def test_a_long_prompt_streams_through_the_pipeline():
    world = lending()
    world.add(request_of("long", 3000))
    assert world.launch()
    assert world.launch(), "the next chunk follows at once"
    assert are_alone(world) == [False, False]
    world.drain()


def test_nobody_waits_for_nothing_where_processors_are_not_lent():
    world = world_of(2)
    world.add(request_of("a", 40))
    world.drain()
    assert not any(are_alone(world))


@given(st.integers(1, 400), st.integers(1, 3))
def test_a_lone_prompt_is_through_no_later_than_in_the_pipeline(tokens, stages):
    """But for what is taken to be lost between stages, and for cuts that are not in equal parts."""
    seconds = []
    for lends in (False, True):
        model = model_of(stages, lends=lends)
        grid = grid_of(stages, pages=1000)
        simulation = Simulation(config_of(), grid, model)
        result = simulation.run([request_of("a", tokens, 1)])
        seconds.append(result.requests["a"].ttft_s)
    assert seconds[1] <= 1.1 * STREAMING_LOSS * seconds[0]
