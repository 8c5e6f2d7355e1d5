"""Distributions of lengths and of arrivals: right on average, within bounds, the same for the same
seed."""

import itertools
import math
import random
import statistics

import pytest

from loadgen.errors import LoadgenError
from loadgen.workload.arrivals import arrival_times
from loadgen.workload.lengths import parse_lengths


def draws(text, count=20_000):
    draw = parse_lengths(text)
    rng = random.Random(1)
    return [draw(rng, index / count) for index in range(count)]


def test_fixed_and_uniform():
    assert set(draws("128", 10)) == {128}
    assert set(draws("fixed:7", 10)) == {7}
    values = draws("16:64")
    assert (min(values), max(values)) == (16, 64)
    assert statistics.mean(values) == pytest.approx(40, rel=0.02)
    assert draws("uniform:16:64", 50) == draws("16:64", 50)


def test_lognormal_has_its_median_and_puts_no_mass_on_the_bounds():
    values = draws("lognormal:100:0.8:8:512")
    assert statistics.median(values) == pytest.approx(100, rel=0.04)
    assert min(values) >= 8
    assert max(values) <= 512
    assert values.count(512) < 20


def test_paper_prompt_percentiles():
    values = sorted(draws("lognormal:393000:0.592"))
    assert values[len(values) // 2] == pytest.approx(393_000, rel=0.03)
    assert values[int(len(values) * 0.9)] == pytest.approx(839_000, rel=0.03)


def test_zipf_falls_with_the_rank():
    values = draws("zipf:10:100")
    assert values.count(10) / values.count(19) == pytest.approx(10, rel=0.25)
    assert min(values) == 10
    assert max(values) <= 100


def test_stair_climbs_in_equal_parts():
    assert draws("stair:100:400:4", 8) == [100, 100, 200, 200, 300, 300, 400, 400]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "0",
        "-3",
        "64:16",
        "lognormal:100",
        "stair:1:2:1",
        "nan",
        "normal:1:2",
        "1:2:3",
    ],
)
def test_what_is_no_length_is_refused_with_the_grammar(text):
    with pytest.raises(LoadgenError, match="is no length: use 128"):
        parse_lengths(text)


def first(count, *args, **kwargs):
    return list(itertools.islice(arrival_times(*args, **kwargs), count))


def gaps(instants):
    return [b - a for a, b in itertools.pairwise([0.0, *instants])]


def test_poisson_has_the_rate_and_is_not_clipped():
    intervals = gaps(first(50_000, 4.0, 3))
    assert statistics.mean(intervals) == pytest.approx(0.25, rel=0.02)
    # exponential: spread equals mean
    assert statistics.stdev(intervals) == pytest.approx(0.25, rel=0.03)
    # clipping at three deviations would end at 4 times the mean
    assert max(intervals) > 0.25 * 8
    assert sum(interval > 1.0 for interval in intervals) / 50_000 == pytest.approx(
        math.exp(-4), rel=0.1
    )


@pytest.mark.parametrize("burstiness", [0.5, 4.0])
def test_gamma_has_the_rate_and_the_burstiness(burstiness):
    intervals = gaps(first(30_000, 4.0, 3, kind="gamma", burstiness=burstiness))
    assert statistics.mean(intervals) == pytest.approx(0.25, rel=0.04)
    assert statistics.stdev(intervals) == pytest.approx(
        0.25 / math.sqrt(burstiness), rel=0.05
    )


def test_fixed_arrivals_and_all_at_once():
    assert first(3, 2.0, 0, kind="fixed") == [0.5, 1.0, 1.5]
    assert first(3, math.inf, 0) == [0.0, 0.0, 0.0]


def test_same_seed_same_pattern_at_every_rate():
    slow = first(100, 1.0, 7)
    fast = first(100, 10.0, 7)
    assert slow == pytest.approx([10 * instant for instant in fast])
    assert slow != first(100, 1.0, 8)


def test_ramp_up_reaches_the_rate_linearly():
    instants = first(2_000, 10.0, 0, kind="fixed", ramp_up_s=20.0)
    assert sum(instant <= 10 for instant in instants) == 25  # 0.5 * 10 s * 5/s
    assert sum(instant <= 20 for instant in instants) == 100
    assert sum(20 < instant <= 30 for instant in instants) == 100
    assert instants == sorted(instants)


@pytest.mark.parametrize(
    ("rate", "burstiness"), [(0, 1), (-1, 1), (math.nan, 1), (1, 0)]
)
def test_senseless_rates_are_refused(rate, burstiness):
    with pytest.raises(LoadgenError):
        first(1, rate, 0, burstiness=burstiness)
