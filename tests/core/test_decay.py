"""The decay of dboost: the root of its equation, learned from what comes and from what waits."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_actors.core.decay import Decay, root_per_s


def test_the_decay_is_the_root_of_its_equation():
    # all works 1 s at load 0.5: 0.5 (e^x - 1) = x at 1.2564
    assert root_per_s([1.0], 0.5) == pytest.approx(1.256431, rel=1e-5)
    # in units of the work
    assert root_per_s([4.0], 0.5) == pytest.approx(1.256431 / 4, rel=1e-5)
    works = [0.125] * 19 + [8.0]
    decay = root_per_s(works, 0.75)
    rate = 0.75 / (sum(works) / 20)
    grown = sum(math.exp(decay * work) for work in works) / 20
    assert rate * (grown - 1) == pytest.approx(decay, rel=1e-4)


def test_the_decay_is_learned_from_what_comes_and_from_what_waits():
    decay = Decay()
    assert decay.arrived(4.0, 0.0)
    # all works 4 s at load 0.95: 0.95 (e^x - 1) = x at 0.1018
    assert decay.per_s == pytest.approx(0.1018 / 4, rel=1e-3)
    assert not decay.arrived(4.0, 20.0)  # 1 / 20 is more
    assert decay.arrived(4.0, 100.0)
    assert decay.per_s == 1 / 100
    assert not decay.arrived(4.0, 110.0)  # no step
    assert decay.arrived(4.0, 1.0)  # and back
    assert decay.per_s == pytest.approx(0.1018 / 4, rel=1e-3)
    given_by_hand = Decay(0.25)
    assert not given_by_hand.arrived(1.0, 1e6)
    assert given_by_hand.per_s == 0.25


@given(
    st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=256),
    st.floats(0.5, 0.99),
)
def test_there_is_a_decay_for_whatever_comes(works, load):
    decay = root_per_s(works, load)
    assert 0 < decay < math.inf


def test_the_decay_is_never_so_low_that_somebody_starves():
    assert Decay(longest_s=10.0).per_s == 1 / 10  # before anybody has come
    decay = Decay(longest_s=50.0)
    for _ in range(10):
        decay.arrived(1e4, 1e9)
    assert decay.per_s == 1 / 50
