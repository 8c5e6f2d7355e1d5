"""What forecasts are multiplied by: near the best factor for what came of the last ones."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_actors.core.truth import (
    ALONE,
    BAND,
    BESIDE,
    FACTORS,
    LATE_COSTS,
    STEP,
    Truth,
)

ratios = st.floats(0.01, 100.0)


def learned(came, window=127, before=ALONE):
    truth = Truth(before, window)
    for ratio in came:
        truth.came_true(ratio)
    return truth


def cost(came, factor):
    late = sum(ratio > factor * BAND for ratio in came)
    early = sum(ratio < factor / BAND for ratio in came)
    return LATE_COSTS * late + early


@given(came=st.lists(ratios, min_size=1, max_size=60), window=st.integers(1, 40))
def test_the_factor_ends_where_the_last_forecasts_would_have_cost_least(came, window):
    """Once what comes stays as it was for as many forecasts as count and as there are steps."""
    last = came[-window:]
    truth = learned(came, window)
    for _ in range(1 + len(FACTORS) // len(last)):
        for ratio in last:
            truth.came_true(ratio)
    if len(last) == window:
        assert cost(last, truth.factor) == min(cost(last, one) for one in FACTORS)


@given(came=st.lists(ratios, max_size=60))
def test_no_single_forecast_counts_for_more_than_a_step(came):
    truth = Truth(BESIDE, 31)
    for ratio in came:
        before = truth.factor
        truth.came_true(ratio)
        assert before / STEP * 0.999 <= truth.factor <= before * STEP * 1.001
        assert FACTORS[0] <= truth.factor <= FACTORS[-1]


@given(came=st.lists(st.floats(0.9, 1.1), min_size=60, max_size=200))
def test_where_all_comes_true_about_the_median_is_announced(came):
    factor = learned(came, 60, ()).factor
    assert factor == pytest.approx(sorted(came[-60:])[30], rel=0.15)
    assert all(1 / BAND <= ratio / factor <= BAND for ratio in came[-60:])


@pytest.mark.parametrize("tail", [0.02, 0.05, 0.1])
def test_few_are_late_where_that_makes_few_early(tail):
    """Nine in ten come between 0.86 and 1.04 of the forecast, a few after up to 1.4 of it: with the
    forecast itself `tail` would be late."""
    rng = random.Random(1)
    truth = Truth(BESIDE, 127)
    late = early = 0
    for number in range(2000):
        came = rng.uniform(0.86, 1.04)
        if rng.random() < tail:
            came = rng.uniform(1.26, 1.32)
        if number > 200:
            late += came > BAND * truth.factor
            early += came < truth.factor / BAND
        truth.came_true(came)
    assert late <= 0.01 * 1800
    assert early <= 0.04 * 1800


def test_where_it_is_luck_the_likely_is_announced():
    """One in ten comes after twice the forecast: not all others are announced twice as late."""
    truth = learned([1.0] * 9 + [2.0], before=())
    for _ in range(20):
        for ratio in [1.0] * 9 + [2.0]:
            truth.came_true(ratio)
    assert truth.factor < BAND


def test_beside_others_a_little_more_is_announced_from_the_first_on():
    assert Truth(ALONE, 127).factor == 1.0
    assert 1.0 < Truth(BESIDE, 127).factor < 1.1


def test_a_fault_of_the_clock_is_not_believed():
    assert learned([1e9] * 200).factor == FACTORS[-1] < 1.5
    assert learned([1e-9] * 200).factor == FACTORS[0] > 0.7
