"""Works in lanes of an octave: what is of one kind is in one lane."""

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_actors.core.lanes import Lanes

works = st.floats(0.001, 1000.0)


@given(st.lists(works, max_size=80), st.lists(works, min_size=2, max_size=20))
def test_a_lane_is_an_octave_and_lanes_are_in_the_order_of_works(seen, asked):
    lanes = Lanes()
    for work_s in seen:
        lanes.arrived(work_s)
    for work_s in asked:
        octaves = math.log2(lanes.of(work_s) / work_s)
        assert abs(octaves) <= 0.5 + 1e-9
    for shorter_s, longer_s in pairwise(sorted(asked)):
        assert lanes.of(shorter_s) <= lanes.of(longer_s)


@given(st.lists(works, max_size=80))
def test_whether_lanes_have_moved_is_told(seen):
    lanes = Lanes()
    for work_s in seen:
        before = lanes.of(1.0), lanes.of(1.5)
        moved = lanes.arrived(work_s)
        assert moved or before == (lanes.of(1.0), lanes.of(1.5))


@pytest.mark.parametrize("heavy_s", [4.0, 5.7, 7.0, 8.0, 11.3])
def test_long_prompts_of_one_kind_are_in_one_lane_wherever_that_is(heavy_s):
    """One in twenty takes `heavy_s` to 1.4 times as much, the others a tenth of a second."""
    draw = random.Random(0)
    lanes = Lanes()
    for index in range(256):
        work_s = draw.uniform(0.03, 0.3)
        if index % 20 == 0:
            work_s = heavy_s * draw.uniform(1.0, 1.4)
        lanes.arrived(work_s)
    found = {lanes.of(heavy_s * (1.0 + place / 20)) for place in range(9)}
    assert len(found) == 1


def test_nothing_is_learned_from_work_that_is_none():
    lanes = Lanes()
    assert not lanes.arrived(0.0)
    assert lanes.of(0.0) > 0.0
