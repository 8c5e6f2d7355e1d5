"""Coefficients from measured steps: those that made them, and sane ones from disturbed
measurements."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_actors.actors.calibration import Case, cases, fit, moves, with_moves

CONTEXT = 4096


def measured(
    linear_s=1e-3, span_s=5e-5, pair_s=5e-7, read_s=2e-7, decode_s=1e-6, head_s=1e-4
) -> dict[Case, float]:
    def seconds(case: Case) -> float:
        total = (
            2e-3
            + linear_s * case.rows * case.tokens
            + span_s * case.rows
            + head_s * case.rows * case.sample
        )
        if case.tokens == 1:
            return total + decode_s * case.rows * case.cached
        return (
            total
            + pair_s * (case.tokens * case.cached + case.tokens**2 / 2)
            + read_s * case.cached
        )

    return {case: seconds(case) for case in cases(CONTEXT, 10**4, 128)}


def test_the_coefficients_that_made_the_measurements_are_found():
    profile = fit(measured(), CONTEXT)
    assert profile.pair_s == pytest.approx(5e-7, rel=1e-6)
    assert profile.prefill_kv_s == pytest.approx(2e-7, rel=1e-6)
    assert profile.decode_kv_s == pytest.approx(1e-6, rel=1e-6)
    assert profile.span_s == pytest.approx(5e-5, rel=1e-6)
    assert profile.head_s == pytest.approx(1e-4, rel=1e-6)
    rows = dict(profile.rows)
    assert rows[256] == pytest.approx(2e-3 + 256e-3, rel=1e-6)


def test_a_disturbed_chunk_does_not_make_reading_the_cache_dearer_than_a_decode_does():
    found = measured()
    found[Case(1, 32, CONTEXT, False)] += 0.2  # another program had the core
    profile = fit(found, CONTEXT)
    assert profile.prefill_kv_s == profile.decode_kv_s == pytest.approx(1e-6)
    assert profile.pair_s == pytest.approx(5e-7, rel=0.01)


TRIED = cases(CONTEXT, 10**4, 128)


@given(
    st.lists(st.floats(1e-6, 10.0), min_size=len(TRIED), max_size=len(TRIED)).map(
        lambda seconds: dict(zip(TRIED, seconds, strict=True))
    )
)
def test_no_disturbance_makes_a_step_cost_nothing(seconds):
    profile = fit(seconds, CONTEXT)
    costs = [cost for _, cost in profile.rows]
    assert costs[0] > 0
    assert costs == sorted(costs)
    assert min(profile.span_s, profile.pair_s, profile.decode_kv_s, profile.head_s) >= 0


def test_pages_to_the_second_tier_and_back_are_measured_apart():
    profile = fit(measured(), CONTEXT)
    there, back = moves(4)
    assert [(move.page, move.slot, move.load) for move in there.moves] == [
        (page, page, False) for page in range(4)
    ]
    assert [move.load for move in back.moves] == [True] * 4
    moved = with_moves(profile, [8e-3, 4e-3], 4)
    assert (moved.save_s, moved.load_s) == (2e-3, 1e-3)
    assert moved.rows == profile.rows
    assert moves(0) == []
    assert with_moves(profile, [], 0) is profile
