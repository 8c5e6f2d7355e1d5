"""How a step's attention is cut: every row meets every key it sees once, and the cuts are its
own."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_actors.model.cuda.attention_work import (
    ALIGNED_KEYS,
    HEADER,
    Tiles,
    most_work,
    plan_work,
)

LLAMA = Tiles(share=4, kv_heads=8, narrow=16, middle=64, wide=128, processors=132)

TILES = st.builds(
    Tiles,
    share=st.sampled_from([1, 3, 4, 7, 16]),
    kv_heads=st.sampled_from([1, 2, 8]),
    narrow=st.just(16),
    middle=st.sampled_from([16, 32, 64]),
    wide=st.sampled_from([64, 128]),
    processors=st.sampled_from([1, 20, 132]),
    uncut=st.sampled_from([128, 2048]),
    shortest=st.sampled_from([128, 512]),
)
SPANS = st.tuples(
    st.integers(1, 90) | st.sampled_from([1, 1, 1]),
    st.integers(0, 300) | st.integers(0, 5000),
    st.booleans(),
)
STEPS = st.lists(SPANS, min_size=1, max_size=8)


def rows_of(planned, place, tiles):
    """Of the tile of an item."""
    wide = planned.work[0, 1]
    middle = planned.work[0, 3]
    assert wide + middle == planned.wide
    if place < wide:
        return tiles.wide // tiles.share
    return (tiles.middle if place < planned.wide else tiles.narrow) // tiles.share


def sequences_of(spans):
    firsts = np.cumsum([0] + [rows for rows, _, _ in spans])
    return np.array(
        [(first, *span) for first, span in zip(firsts, spans, strict=False)], np.int32
    )


@given(STEPS, TILES)
def test_every_row_meets_every_key_that_it_sees_once(spans, tiles):
    sequences = sequences_of(spans)
    planned = plan_work(sequences, tiles)
    assert planned.work[0, 0] == len(planned.work) - HEADER
    assert planned.work[0, 2] == len(planned.merges)
    met = [
        np.zeros((rows, cached + rows * writes), int) for rows, cached, writes in spans
    ]
    visited = [np.zeros(rows, int) for rows, _, _ in spans]
    for place, (sequence, first, key, stop, _) in enumerate(
        planned.work[HEADER:].tolist()
    ):
        size = rows_of(planned, place, tiles)
        assert key % ALIGNED_KEYS == 0
        assert stop >= key
        met[sequence][first : first + size, key:stop] += 1
        visited[sequence][first : first + size] += 1
    for (rows, cached, writes), pairs, visits in zip(spans, met, visited, strict=True):
        seen = cached + writes * (np.arange(rows)[:, None] + 1)
        sees = np.arange(cached + rows * writes) < seen
        assert (pairs[sees] == 1).all()
        assert (pairs <= 1).all()
        assert (visits >= 1).all()


@given(STEPS, TILES)
def test_partial_results_have_slots_of_their_own_and_are_merged_once(spans, tiles):
    sequences = sequences_of(spans)
    planned = plan_work(sequences, tiles)
    owners = np.full(planned.slots, -1)
    whole = np.zeros(sum(rows for rows, _, _ in spans), int)
    for place, (sequence, first, _, _, slot) in enumerate(
        planned.work[HEADER:].tolist()
    ):
        size = rows_of(planned, place, tiles)
        start, rows = sequences[sequence, :2]
        mine = np.arange(first, min(first + size, rows)) + start
        if slot < 0:
            whole[mine] += 1
        else:
            assert (owners[slot : slot + len(mine)] == -1).all()
            owners[slot : slot + len(mine)] = mine
    assert (owners >= 0).all()
    for first, rows, slot, pieces in planned.merges.tolist():
        assert pieces > 1
        expected = np.tile(np.arange(first, first + rows), pieces)
        assert (owners[slot : slot + rows * pieces] == expected).all()
        owners[slot : slot + rows * pieces] = -1
        whole[first : first + rows] += 1
    assert (owners == -1).all()
    assert (whole == 1).all()


@given(STEPS, TILES)
def test_cuts_do_not_depend_on_what_is_batched_beside(spans, tiles):
    together = plan_work(sequences_of(spans), tiles).work[HEADER:]
    for number, span in enumerate(spans):
        alone = plan_work(sequences_of([span]), tiles).work[HEADER:]
        mine = together[together[:, 0] == number]
        assert sorted(mine[:, 1:4].tolist()) == sorted(alone[:, 1:4].tolist())


@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=20), TILES)
def test_single_rows_need_no_more_than_their_bucket_has(contexts, tiles):
    planned = plan_work(sequences_of([(1, cached, True) for cached in contexts]), tiles)
    work, merges, slots = most_work(len(contexts), tiles)
    assert len(planned.work) <= work
    assert len(planned.merges) <= merges
    assert planned.slots <= slots
    assert planned.wide == 0


def test_long_and_lone_tiles_fill_the_processors():
    """And the longest come first, those that read the same keys side by side."""
    for rows in (1, 16, 64, 256, 512, 1024, 2048):
        planned = plan_work(sequences_of([(rows, 2**20, True)]), LLAMA)
        programs = planned.work[0, 0] * LLAMA.kv_heads
        processors = LLAMA.processors * (2 if rows <= 16 else 1)
        assert programs / (-(-programs // processors) * processors) > 0.95, rows
        keys = planned.work[HEADER:, 3] - planned.work[HEADER:, 2]
        assert (np.diff(keys) <= 0).all()
    pairs = (
        plan_work(sequences_of([(64, 2**20, True)]), LLAMA)
        .work[HEADER:]
        .reshape(-1, 2, 5)
    )
    assert (pairs[:-1, 0, 2] == pairs[:-1, 1, 2]).all()


def test_short_contexts_are_not_cut():
    planned = plan_work(sequences_of([(1, 2000, True), (100, 1900, True)]), LLAMA)
    assert planned.slots == 0
    assert len(planned.merges) == 0


@pytest.mark.parametrize(
    "spans", [[(1, 8000, True)] * 64, [(2048, 2**20, True)]], ids=len
)
def test_planning_takes_a_fraction_of_a_millisecond(spans):
    """Without loops over keys or rows; ten times what it takes on an idle machine."""
    sequences = sequences_of(spans)
    plan_work(sequences, LLAMA)
    took = []
    for _ in range(20):
        began = time.perf_counter()
        plan_work(sequences, LLAMA)
        took.append(time.perf_counter() - began)
    assert min(took) < 3e-3
