"""What goes into a batch, and what comes out of it."""

import msgspec
import pytest
from core_batches import spans_in, spans_of
from core_inputs import request_of
from core_world import decoding_world, world_of

from medha_actors.core.decoding import decode_rows
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.simulator import token_of
from medha_actors.messages import Grammar, Objectives


def test_the_next_chunk_of_a_prompt_is_dispatched_before_the_last_one_is_computed():
    world = world_of(stages=3)
    world.add(request_of("a", 2000, 1, world.now))
    for _ in range(4):
        assert world.launch()
    state = world.scheduler.live.by_id["a"]
    assert state.computed == 0
    chunks = [spans_of(batch)[0] for batch in world.batches]
    assert [chunk.start for chunk in chunks] == [
        0,
        *[chunk.stop for chunk in chunks[:-1]],
    ]
    assert state.dispatched == chunks[-1].stop
    world.drain()


def test_a_prompt_that_is_alone_is_cut_to_fill_the_pipeline():
    world = world_of(stages=2, tpot_s=10.0)
    world.add(request_of("a", 2048, 1, world.now))
    world.drain()
    # 32 chunks of 33 ms and one more: 1,089 ms; 64 of 17 ms and one more: 1,105 ms
    assert [batch.prefill_tokens for batch in world.batches] == [64] * 32


def test_a_lone_request_may_use_larger_chunks_than_beside_others():
    model = ExecutionModel.analytic(token_s=1e-3)
    world = world_of(tpot_s=0.2, model=model)
    world.add(request_of("long", 4000, 1, world.now))
    world.launch()
    assert world.batches[-1].prefill_tokens == 144
    world.add(request_of("as-long", 5000, 1, world.now))
    world.land()
    assert world.launch()
    assert world.batches[-1].prefill_tokens == 144  # half a budget is nothing to it
    world.add(request_of("short", 300, 1, world.now))
    world.land()
    assert world.launch()
    assert world.batches[-1].prefill_tokens <= 100


@pytest.mark.parametrize(
    ("running", "stages", "rows"),
    [(1, 1, 1), (5, 1, 5), (3, 2, 3), (4, 2, 2), (9, 2, 5), (9, 4, 3)],
)
def test_decodes_per_batch(running, stages, rows):
    assert decode_rows(running, stages) == rows


def test_decodes_are_split_so_that_all_stages_have_work():
    world = decoding_world(6, stages=2)
    assert world.launch()
    assert world.launch()
    assert [batch.decode_tokens for batch in world.batches[-2:]] == [3, 3]
    assert len({span.request_id for span in spans_in(world.batches[-2:])}) == 6


def test_a_decode_waits_for_its_own_token():
    world = decoding_world(1)
    assert world.launch()
    assert not world.launch()
    world.land()
    assert world.launch()


def test_short_prefills_share_the_batch_with_a_long_one_that_has_slack():
    model = ExecutionModel.analytic(token_s=1e-3)
    world = world_of(tpot_s=0.2, model=model)
    world.add(request_of("long", 4000, 1, world.now, ttft_s=20.0))
    world.launch()
    # later in the order than the long one
    world.add(request_of("short", 32, 1, world.now, ttft_s=1000.0))
    world.launch()
    tokens = {
        span.request_id: span.stop - span.start for span in spans_of(world.batches[-1])
    }
    assert tokens["short"] == 32
    assert tokens["long"] == 64  # 48 of its own 60% share, and what the short one left
    world.land()
    world.land()
    assert "short" in world.finished


def test_without_slack_or_without_sharing_the_long_one_keeps_the_budget():
    for more, ttft_s in (({"space_sharing": False}, 20.0), ({}, 1.0)):
        world = world_of(
            tpot_s=0.2, model=ExecutionModel.analytic(token_s=1e-3), **more
        )
        world.add(request_of("long", 4000, 1, world.now, ttft_s=ttft_s))
        world.launch()
        world.add(request_of("short", 32, 1, world.now, ttft_s=1000.0))
        world.launch()
        assert [span.request_id for span in spans_of(world.batches[-1])] == ["long"]


def test_two_long_prefills_do_not_share_a_batch():
    world = world_of(
        tpot_s=0.2, model=ExecutionModel.analytic(token_s=1e-3), max_chunk_tokens=32
    )
    for name in ("a", "b"):
        world.add(request_of(name, 3000, 1, world.now, ttft_s=20.0))
    for _ in range(20):
        world.launch()
        world.land()
        assert len(spans_of(world.batches[-1])) == 1


def test_what_a_long_prefill_has_left_in_vain_it_takes_back_to_the_last_tokens():
    """Where a budget is filled by two dozen of them, too: 60% of it are 12, all of it 24."""
    world = world_of(tpot_s=0.2, model=ExecutionModel.analytic(token_s=4e-3))
    for name in "abcde":
        world.add(request_of(name, 300, 1, world.now, ttft_s=20.0))
    world.launch()
    assert world.batches[-1].prefill_tokens == 24


def test_a_batch_has_a_most_of_tokens():
    world = world_of(
        tpot_s=10.0,
        max_chunk_tokens=64,
        max_batch_tokens=100,
        model=ExecutionModel.analytic(),
    )
    for index in range(5):
        world.add(request_of(f"r{index}", 64, 2, world.now))
    world.launch()
    assert world.batches[-1].prefill_tokens == 64 + 32
    world.drain()


def test_fcfs_lets_nobody_ride_with_an_unfinished_prefill_nor_overtake_it():
    world = world_of(
        tpot_s=0.2,
        model=ExecutionModel.analytic(token_s=1e-3),
        policy="fcfs",
        max_chunk_tokens=32,
    )
    world.add(request_of("a", 200, 1, world.now))
    world.add(request_of("b", 20, 1, world.now))
    world.launch()
    world.add(request_of("urgent", 20, 1, world.now, priority=-1))
    for _ in range(5):
        world.launch()
        world.land()
        assert [span.request_id for span in spans_of(world.batches[-1])] == ["a"]
    world.drain()
    assert world.finished["urgent"].first_token_at <= world.finished["b"].first_token_at


def test_prefill_moves_on_even_when_decodes_fill_the_budget():
    model = ExecutionModel.analytic(token_s=1e-3, step_s=1.0)
    world = decoding_world(2, model=model)
    world.add(request_of("a", 100, 1, world.now))
    world.launch()
    assert world.batches[-1].prefill_tokens == world.config.scheduler.min_chunk_tokens
    assert world.batches[-1].decode_tokens == 2


def test_a_tighter_client_objective_makes_batches_shorter():
    world = world_of(tpot_s=0.4)
    eager = request_of("eager", 4, 500, world.now)
    world.add(msgspec.structs.replace(eager, objectives=Objectives(tpot_s=0.1)))
    while not world.tokens["eager"]:
        world.launch() or world.land()
    world.add(request_of("a", 1000, 1, world.now))
    world.launch()
    assert world.batches[-1].budget_s == pytest.approx(0.05)
    assert world.batches[-1].predicted_s <= 0.05


def test_fixed_chunks():
    world = decoding_world(1, fixed_chunk_tokens=50)
    world.add(request_of("a", 170, 1, world.now))
    world.drain()
    assert [batch.prefill_tokens for batch in world.batches if batch.prefill_tokens][
        1:
    ] == [
        50,
        50,
        50,
        20,
    ]


def test_a_preemption_is_counted_when_another_takes_the_turn():
    world = world_of(
        tpot_s=0.2, model=ExecutionModel.analytic(token_s=1e-3), space_sharing=False
    )
    world.add(request_of("long", 4000, 1, world.now, ttft_s=100.0))
    world.launch()
    world.add(request_of("short", 300, 1, world.now, ttft_s=0.5))
    world.drain()
    assert world.finished["long"].preemptions == 1
    assert world.finished["short"].preemptions == 0
    assert world.scheduler.stats().preemptions_total == 1


def test_progress_is_told_for_prompts_of_several_chunks_only():
    world = world_of(stages=2)
    world.add(request_of("long", 1000, 2, world.now))
    world.drain()
    world.add(request_of("short", 20, 2, world.now))
    world.drain()
    assert "short" not in world.progress
    progress = world.progress["long"]
    assert [event.prefilled_tokens for event in progress] == sorted(
        event.prefilled_tokens for event in progress
    )
    assert all(event.total_tokens == 1000 for event in progress)
    left = [event.seconds_left for event in progress]
    assert left == sorted(left, reverse=True)
    assert left[-1] > 0


def test_the_end_of_generation():
    world = world_of()
    world.add(request_of("length", 8, 5, world.now))
    stop = (token_of("stop", 2), token_of("late", 0))
    world.add(request_of("stop", 8, 50, world.now, stop_token_ids=stop))
    world.add(request_of("late", 8, 9, world.now, stop_token_ids=stop, min_tokens=2))
    edge = (token_of("edge", 0), token_of("edge", 1))
    world.add(request_of("edge", 8, 9, world.now, stop_token_ids=edge, min_tokens=2))
    # with a grammar an early stop token comes only where nothing else may
    grammar = Grammar("start: /a/", stop)
    early = {
        "stop_token_ids": (token_of("early", 0),),
        "min_tokens": 5,
        "grammar": grammar,
    }
    world.add(request_of("early", 8, 9, world.now, **early))
    world.add(request_of("model", 7990, 10, world.now))
    world.drain()
    ends = {
        name: (event.reason, event.generated_tokens)
        for name, event in world.finished.items()
    }
    assert ends == {
        "length": ("length", 5),
        "stop": ("stop", 3),
        "late": ("length", 9),
        "edge": ("stop", 2),
        "early": ("stop", 1),
        "model": ("length", 10),
    }


def test_a_long_prefill_does_not_hold_up_a_first_token_in_its_batch():
    world = world_of(tpot_s=0.4, model=ExecutionModel.analytic(token_s=1e-3))
    world.add(request_of("long", 4000, 1, world.now, ttft_s=100.0))
    world.launch()
    world.land()
    world.add(request_of("short", 60, 1, world.now))
    world.launch()
    rows = {
        span.request_id: span.stop - span.start for span in spans_of(world.batches[-1])
    }
    assert rows["short"] == 60
    assert rows.get("long", 0) <= 15
