"""Chunk sizes, and the table of remaining prefill work."""

import pytest
from core_inputs import config_of, grid_of, request_of
from hypothesis import given
from hypothesis import strategies as st

from medha_actors.core.chunking import (
    FINE,
    UNIT,
    PrefillTable,
    largest_chunk,
    pipeline_share,
)
from medha_actors.core.predictor import ExecutionModel, Profile, StageProfile
from medha_actors.core.simulator import Simulation


@given(st.integers(0, 3000), st.integers(-1, 3000), st.booleans())
def test_the_largest_chunk_that_fits(cap, limit, fine):
    chunk = largest_chunk(cap, lambda tokens: tokens <= limit, fine)
    unit = FINE if fine and limit < 2 * UNIT else UNIT
    assert chunk == (cap if cap <= limit else max(0, min(cap, limit)) // unit * unit)


def chunk_s(rows, start):
    """Seconds: 10 for the batch, one a row, one for each 1,000 rows and rows before them."""
    return 10 + rows + rows * start / 1000


def makespan_s(tokens, stages, size):
    """Of equal chunks, played."""
    free_at = [0.0] * stages
    for start in range(0, tokens, size):
        at = 0.0
        seconds = chunk_s(min(size, tokens - start), start)
        for stage in range(stages):
            at = free_at[stage] = max(at, free_at[stage]) + seconds
    return free_at[-1]


@given(st.integers(1, 20_000), st.integers(1, 16), st.integers(1, 4096))
def test_a_share_of_the_pipeline(tokens, stages, cap):
    share = pipeline_share(tokens, stages, cap, chunk_s)
    assert 1 <= share <= cap
    if stages == 1:
        assert share == cap
    elif share < min(cap, tokens):
        assert share >= 16


@pytest.mark.parametrize("stages", [2, 4, 8])
@pytest.mark.parametrize("tokens", [5000, 20_000])
def test_a_share_is_as_good_as_the_best_constant_chunk(tokens, stages):
    best_s = min(makespan_s(tokens, stages, size) for size in range(16, 2049, 16))
    share = pipeline_share(tokens, stages, 2048, chunk_s)
    assert makespan_s(tokens, stages, share) <= 1.05 * best_s


def test_shares_of_a_short_prompt():
    assert pipeline_share(60, 2, 512, chunk_s) >= 60  # too short to cut
    assert pipeline_share(100, 2, 512, chunk_s) == 64  # and 36
    assert pipeline_share(256, 2, 512, chunk_s) == 64
    assert pipeline_share(1000, 2, 512, chunk_s) == 112  # 1,767 s; 128 tokens: 1,800 s
    assert pipeline_share(1024, 4, 2048, chunk_s) == 64
    assert pipeline_share(3000, 2, 32, chunk_s) == 32


def table_of(model, stages=1, budget_s=0.1, **more):
    return PrefillTable(
        model,
        **{
            "stages": stages,
            "budget_s": budget_s,
            "max_chunk": 512,
            "cutoff": 10**9,
            "groups": 1,
            "page_tokens": 16,
            **more,
        },
    )


@pytest.mark.parametrize(("stages", "groups"), [(1, 1), (2, 1), (4, 1), (2, 2)])
@pytest.mark.parametrize("prompt", [20, 300, 2_000, 20_000])
def test_the_table_foretells_a_lone_prefill(stages, groups, prompt):
    model = ExecutionModel.analytic(
        stages, token_s=8e-4, step_s=4e-3, pair_s=3e-7, kv_s=1e-6
    )
    grid = grid_of(stages, groups, pages=4_000, page=16, cutoff=6_000, length=50_000)
    log = (
        Simulation(config_of(), grid, model)
        .run([request_of("a", prompt, 1)])
        .requests["a"]
    )
    assert log.answer.predicted_ttft_s == pytest.approx(log.ttft_s, rel=0.1)


@given(st.lists(st.integers(0, 30_000), min_size=3, max_size=3))
def test_less_is_left_the_more_is_done(positions):
    early, late, total = sorted(positions)
    table = table_of(ExecutionModel.analytic(token_s=8e-4, step_s=4e-3, pair_s=3e-7))
    assert table.seconds(early, total) >= table.seconds(late, total) >= 0
    assert table.seconds(0, late) <= table.seconds(0, total)


def test_a_long_table_is_cheap_and_follows_the_correction(monkeypatch):
    model = ExecutionModel.analytic(token_s=1e-5, pair_s=1e-10)
    asked = []
    base = model.base

    def watched(load):
        asked.append(load)
        return base(load)

    monkeypatch.setattr(model, "base", watched)
    table = table_of(model)
    seconds = table.seconds(0, 10_000_000)
    assert seconds == pytest.approx(100 + 1e-10 * 1e14 / 2, rel=0.01)
    assert len(asked) < 5_000
    model.prefill.scale = 1.1
    assert table.seconds(0, 10_000_000) == pytest.approx(1.1 * seconds)
    model.prefill.scale = 2.0
    assert table.seconds(0, 10_000_000) == pytest.approx(2 * seconds, rel=0.01)


def test_chunks_in_the_table_shrink_when_the_machine_slows_down():
    """Each chunk has a cost of its own; a budget of 100 ms (150 for a lone request) holds fewer
    tokens when slow."""
    model = ExecutionModel.analytic(token_s=1e-3, step_s=0.04)
    table = table_of(model)
    assert table.seconds(0, 16_000) == pytest.approx(16_000 / 96 * 0.136, rel=0.01)
    model.prefill.scale = 2.0
    assert table.seconds(0, 16_000) == pytest.approx(16_000 / 32 * 2 * 0.072, rel=0.01)


def test_groups_share_the_cost_of_a_long_context():
    model = ExecutionModel.analytic(token_s=1e-5, pair_s=1e-8)
    alone = table_of(model)
    shared = table_of(model, cutoff=25_000, groups=4)
    assert shared.seconds(0, 20_000) == pytest.approx(alone.seconds(0, 20_000))
    assert shared.seconds(90_000, 100_000) < 0.4 * alone.seconds(90_000, 100_000)


def test_the_table_counts_the_merging_of_pieces():
    """Where three groups hold a piece, a row is merged with two others."""
    stage = StageProfile(rows=((1, 1e-4),), exchange_s=1e-5, exchange_step_s=3e-3)
    table = table_of(
        ExecutionModel(Profile((stage,))), cutoff=4096, groups=3, max_chunk=256
    )
    for done, merges in ((0, 0), (4096, 1), (8192, 2), (20_480, 2)):
        exchange_s = 3e-3 * (merges > 0) + 256 * merges * 1e-5
        assert table.seconds(done, done + 256) == pytest.approx(
            256e-4 + exchange_s, rel=1e-6
        )
