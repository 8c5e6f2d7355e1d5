"""Pages and pieces: progressive onboarding, reservation, and cutoffs wherever they fall."""

import pytest
from core_batches import placed_spans
from core_inputs import config_of, grid_of, request_of
from core_world import World
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_actors.core.kv_plan import PAYS_FROM_TOKENS, Grid, KvPlan


def test_a_lone_request_can_have_everything():
    plan = KvPlan(grid_of(groups=3, pages=10, cutoff=12))
    assert plan.capacity_tokens == 12 + 12 + 40
    assert KvPlan(grid_of(groups=1, pages=10, cutoff=12)).capacity_tokens == 40
    assert KvPlan(grid_of(groups=2, pages=10, cutoff=None)).capacity_tokens == 80


def test_pieces_go_to_the_preferred_groups_with_room():
    plan = KvPlan(grid_of(groups=3, pages=10, cutoff=12))
    assert [
        (p.group, p.start, p.promised) for p in plan.place(12, [1, 0, 2], [0, 0, 0])
    ] == [(1, 0, 3)]
    assert [
        (p.group, p.start, p.promised) for p in plan.place(13, [1, 0, 2], [0, 0, 0])
    ] == [
        (1, 0, 3),
        (0, 12, 1),
    ]
    # the last takes the rest, and has the first choice
    pieces = plan.place(60, [1, 0, 2], [0, 0, 0])
    assert [(p.group, p.start, p.promised) for p in pieces] == [
        (0, 0, 3),
        (2, 12, 3),
        (1, 24, 9),
    ]
    assert plan.place(60, [1, 0, 2], [0, 2, 0])[2].group == 0
    assert plan.place(65, [1, 0, 2], [0, 0, 0]) is None


def onboard(prompt, output, stages, groups, cutoff, pages=60, page=4, chunk=64):
    config = config_of(
        max_chunk_tokens=chunk,
        max_batch_tokens=max(chunk, 256),
        min_chunk_tokens=min(16, chunk),
    )
    world = World(config, grid_of(stages, groups, pages, cutoff, page))
    world.add(request_of("a", prompt, output, world.now))
    world.drain()
    assert len(world.tokens["a"]) == output
    pieces = {}
    for batch in world.batches:
        for group, message in enumerate(batch.groups):
            for span in message.spans if message else ():
                if span.writes:
                    assert span.start >= span.piece_start
                    pieces.setdefault((span.piece_start, group), 0)
                    pieces[span.piece_start, group] += span.stop - span.start
    return pieces


@pytest.mark.parametrize("cutoff", [16, 17, 15, 32, 64, 1])
def test_a_group_is_onboarded_only_when_the_piece_before_is_full(cutoff):
    pieces = onboard(prompt=40, output=30, stages=2, groups=3, cutoff=cutoff)
    starts = sorted(start for start, _ in pieces)
    assert starts == [start for start in (0, cutoff, 2 * cutoff) if start < 69]
    tokens = [pieces[key] for key in sorted(pieces)]
    assert sum(tokens) == 69  # the last token's KV is never needed
    assert all(count == cutoff for count in tokens[:-1])
    assert len({group for _, group in pieces}) == len(pieces)


@settings(max_examples=60)
@given(
    st.integers(1, 150),
    st.integers(1, 40),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(1, 90),
    st.integers(1, 9),
    st.integers(1, 70),
)
def test_cutoffs_pages_and_chunks_of_any_size(
    prompt, output, stages, groups, cutoff, page, chunk
):
    pieces = onboard(
        prompt, output, stages, groups, cutoff, pages=200, page=page, chunk=chunk
    )
    assert sum(pieces.values()) == prompt + output - 1


def test_short_requests_are_spread_over_the_groups():
    world = World(config_of(), grid_of(groups=4))
    for index in range(8):
        world.add(request_of(f"r{index}", 20, 50, world.now))
    while world.scheduler.live.queue:
        world.launch()
        world.land()
    groups = [state.pieces[0].group for state in world.scheduler.live.by_id.values()]
    assert sorted(groups) == [0, 0, 1, 1, 2, 2, 3, 3]
    world.drain()


def test_a_short_request_does_not_wait_for_a_long_one_on_another_group():
    world = World(config_of(tpot_s=0.1), grid_of(groups=2, pages=2000))
    world.add(request_of("long", 3000, 1, world.now))
    world.launch()
    world.add(request_of("short", 30, 1, world.now))
    world.launch()
    owners = {span.request_id: group for group, span in placed_spans(world.batches[-1])}
    assert owners == {"long": 0, "short": 1}
    world.drain()


def test_a_prefill_waits_for_the_pages_of_its_whole_prompt():
    world = World(config_of(), grid_of(pages=20))
    world.add(request_of("a", 60, 8, world.now, ttft_s=0.06))
    world.add(request_of("b", 40, 8, world.now))
    world.launch()
    assert {span.request_id for span in world.batches[-1].groups[0].spans} == {"a"}
    world.drain()
    assert world.scheduler.stats().evictions_total == 0


@pytest.mark.parametrize(
    ("longest", "pages", "cutoff"),
    [
        (32_768, 1000, 16_384),
        (12_000, 1000, 8192),
        (32_768, 100, 6400),
        (100_001, 1000, 50_048),
    ],
)
def test_the_default_cutoff_is_an_equal_share_but_not_less_than_pays(
    longest, pages, cutoff
):
    grid = Grid(
        stages=1,
        groups=2,
        pages_per_group=pages,
        page_tokens=64,
        max_tokens_per_kvp_group=None,
        max_model_len_tokens=longest,
    )
    assert KvPlan(grid).cutoff == cutoff


@given(
    st.integers(1, 8), st.integers(1, 600), st.integers(1, 300), st.integers(1, 400_000)
)
def test_the_default_cutoff_refuses_nothing_that_memory_could_hold(
    groups, pages, page, longest
):
    plan = KvPlan(grid_of(groups=groups, pages=pages, page=page, length=longest))
    room = pages * page
    assert plan.capacity_tokens >= min(longest, groups * room)
    assert plan.cutoff <= room
    if groups > 1:
        assert plan.cutoff % page == 0
        assert plan.cutoff >= min(PAYS_FROM_TOKENS, room)
    lone = plan.place(min(longest, groups * room), range(groups), [0] * groups)
    assert lone is not None
