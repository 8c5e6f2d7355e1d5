"""A request that kills the pipeline is found and ended; whoever was in flight beside it goes on."""

from typing import get_args

import pytest
from core_batches import spans_of
from core_inputs import config_of, grid_of, request_of
from core_world import DEATHS, World, decoding_world, world_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medha_actors.core.simulator import token_of
from medha_actors.messages import Failure, SampledToken, StepResult
from medha_actors.quantities import Policy


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    policy=st.sampled_from(get_args(Policy)),
    stages=st.integers(1, 3),
    groups=st.integers(1, 3),
    pages=st.integers(20, 60),
    cutoff=st.sampled_from([None, 7, 16]),
    running=st.sampled_from([2, 64]),
    chunk=st.sampled_from([3, 16, 50]),
    dies=st.sampled_from(DEATHS),
    shapes=st.lists(
        st.tuples(
            st.integers(1, 60), st.integers(1, 15), st.none() | st.integers(0, 74)
        ),
        min_size=2,
        max_size=8,
    ),
)
def test_only_the_poison_is_ended(
    policy, stages, groups, pages, cutoff, running, chunk, dies, shapes
):
    config = config_of(
        policy,
        max_running_requests=running,
        min_chunk_tokens=min(chunk, 16),
        max_chunk_tokens=chunk,
        max_batch_tokens=max(64, chunk),
    )
    world = World(config, grid_of(stages, groups, pages, cutoff, length=80))
    world.dies = dies
    deadly = set()
    for number, (prompt, output, position) in enumerate(shapes):
        request = request_of(f"r{number}", prompt, output, world.now)
        if position is not None:
            world.poison[request.id] = position
            if position < prompt + output - 1:
                deadly.add(request.id)
        world.add(request)
        if number % 3 == 0:
            world.launch()
    world.drain(limit=5_000)
    assert world.condemned == deadly
    for name, event in world.finished.items():
        if name not in deadly:
            count = world.requests[name].sampling.max_tokens
            assert event.reason == "length"
            assert world.tokens[name] == [
                token_of(name, index) for index in range(count)
            ]
        else:
            assert event.reason == "error"
            assert (
                event.message
                == "the pipeline died repeatedly while this request was in it"
            )


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    stages=st.integers(1, 3),
    groups=st.integers(1, 2),
    kills=st.lists(
        st.tuples(st.integers(0, 12), st.sampled_from([None, (), (0,)])),
        min_size=1,
        max_size=6,
    ),
)
def test_coincidences_condemn_only_who_was_alone(stages, groups, kills):
    """World.restart asserts it; a neighbour in every batch is never condemned."""
    world = world_of(stages, groups, pages=60, cutoff=16, max_chunk_tokens=16)
    for number in range(4):
        world.add(request_of(f"r{number}", 20, 12, world.now))
    for steps, lost in kills:
        for _ in range(steps):
            world.launch()
            world.land()
        world.launch()
        world.restart(lost)
    world.drain()
    for name, event in world.finished.items():
        assert event.reason == ("error" if name in world.condemned else "length")


def test_each_suspect_among_decodes_costs_one_step():
    """Eight decodes in flight: after the death each runs alone once, in their order; then all
    together."""
    world = decoding_world(8)
    world.launch()
    before = len(world.batches)
    world.restart(())
    alone = []
    for _ in range(8):
        assert world.launch()
        assert not world.launch()
        world.land()
        alone.append([span.request_id for span in spans_of(world.batches[-1])])
    assert alone == [[f"d{number}"] for number in range(8)]
    world.launch()
    assert len(spans_of(world.batches[-1])) == 8
    assert len(world.batches) == before + 9


def test_recomputation_runs_beside_others_and_stops_before_the_danger():
    world = world_of(max_chunk_tokens=64)
    world.add(request_of("a", 40, 4, world.now))
    while len(world.tokens["a"]) < 2:
        world.launch() or world.land()
    world.launch()
    world.restart()
    world.add(request_of("b", 20, 4, world.now))
    world.launch()
    spans = {
        span.request_id: (span.start, span.stop) for span in spans_of(world.batches[-1])
    }
    assert spans == {"a": (0, 41), "b": (0, 20)}
    assert not world.launch()
    world.land()
    world.launch()
    [span] = spans_of(world.batches[-1])
    assert (span.request_id, span.start, span.stop, span.sample) == ("a", 41, 42, True)
    world.drain()
    assert {name: len(tokens) for name, tokens in world.tokens.items()} == {
        "a": 4,
        "b": 4,
    }


def test_a_death_of_another_group_condemns_nobody():
    """A suspect runs alone in its group while an idle one dies."""
    world = world_of(1, 2)
    world.add(request_of("a", 10, 8, world.now))
    while not world.tokens["a"]:
        world.launch() or world.land()
    group = world.scheduler.live.by_id["a"].pieces[0].group
    world.launch()
    world.restart({group})
    while world.scheduler.live.by_id["a"].dispatched < 10:
        world.launch()
        world.land()
    world.launch()
    world.restart({1 - group})
    world.drain()
    assert world.finished["a"].reason == "length"


def test_a_suspect_that_has_no_room_to_start_holds_nobody_up():
    world = world_of(pages=16, max_chunk_tokens=16, max_running_requests=1)
    for name in ("a", "b"):
        world.add(request_of(name, 40, 4, world.now))
    world.launch()
    world.restart()  # `a` is dangerous from its first token on, and has lost its place
    world.cancel("a")
    world.add(request_of("c", 40, 4, world.now))
    world.drain()
    assert {name: world.finished[name].reason for name in "abc"} == {
        "a": "abort",
        "b": "length",
        "c": "length",
    }


@pytest.mark.parametrize(("stages", "groups"), [(1, 1), (2, 1), (2, 2)])
def test_a_failure_ends_that_request_alone(stages, groups):
    """As a stage reports it, at any step; what is still in flight of it is ignored."""

    def run(fail_at):
        world = world_of(stages, groups, pages=40, cutoff=20, max_chunk_tokens=8)
        for name in ("a", "b"):
            world.add(request_of(name, 30, 5, world.now))
        steps = 0
        while world.flights or world.launch():
            world.launch()
            batch = world.flights[0]
            if "a" in {span.request_id for span in spans_of(batch)}:
                if steps == fail_at:
                    world.flights.popleft()
                    world.note(world.scheduler.complete(failed(batch), world.now))
                    steps += 1
                    continue
                steps += 1
            world.land()
        ended = world.finished["a"]
        assert (ended.reason, ended.message) == (
            ("error", "no numbers") if fail_at < steps else ("length", None)
        )
        assert world.finished["b"].reason == "length"
        assert all(
            world.scheduler.live.kv.available(group) == 40 for group in range(groups)
        )
        return steps

    def failed(batch):
        """All groups answer; that `a` failed, one of them says."""
        results = []
        for group, message in enumerate(batch.groups):
            if message is None:
                continue
            mine = [span for span in message.spans if span.request_id == "a"]
            failures = (Failure("a", "no numbers"),) if mine and mine[0].writes else ()
            drawn = world_tokens(message)
            results.append(
                StepResult(batch.id, group, drawn, (0.1,) * stages, failures=failures)
            )
        return results

    for fail_at in range(run(10**6) + 1):
        run(fail_at)


def world_tokens(message):
    return tuple(
        SampledToken(span.request_id, span.index, token_of(span.request_id, span.index))
        for span in message.spans
        if span.sample and span.request_id != "a"
    )


def test_the_danger_may_begin_inside_a_piece_that_another_group_follows():
    """Positions 4 to 8 of `b` are in flight when it dies; its first piece ends at 7."""
    world = world_of(
        2,
        2,
        pages=12,
        cutoff=7,
        policy="fcfs",
        tpot_s=0.01,
        max_chunk_tokens=16,
        min_chunk_tokens=16,
    )
    world.poison["b"] = 4
    world.add(request_of("a", 1, 1, world.now))
    world.add(request_of("b", 8, 1, world.now))
    world.drain()
    assert world.condemned == {"b"}
    assert world.finished["a"].reason == "length"
    again = [(span.start, span.stop) for span in spans_of(world.batches[-2])]
    assert again == [(0, 4)]
    alone = [(span.start, span.stop) for span in spans_of(world.batches[-1])]
    assert alone == [(4, 7)]
