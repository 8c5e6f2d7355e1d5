"""How many grids: more when work will be late or load is above the target, fewer after a while."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from medha_actors.fleet.scaling import GridLoad, Scaling
from medha_actors.fleet_config import ScalingConfig

SETTINGS = ScalingConfig(
    min_grids=1,
    max_grids=8,
    target_load=0.5,
    window_s=10.0,
    up_after_s=5.0,
    down_after_s=60.0,
    catch_up_s=30.0,
)


def grid(load=0.4, queued=0, late=0, late_s=0.0):
    return GridLoad(load=load, queued=queued, late=late, late_s=late_s)


def run(scaling, grids, target, seconds, start=0):
    """A decision a second; the last one."""
    for second in range(start, start + seconds):
        target = scaling.decide(grids, target, float(second))
    return target


def test_nothing_changes_while_the_load_fits():
    assert run(Scaling(SETTINGS), [grid(0.4), grid(0.45)], 2, 1000) == 2


def test_load_above_the_target_asks_for_as_many_as_would_carry_it():
    assert run(Scaling(SETTINGS), [grid(0.9), grid(0.9)], 2, 4) == 2
    assert run(Scaling(SETTINGS), [grid(0.9), grid(0.9)], 2, 6) == 4


def test_late_work_asks_for_as_many_as_would_do_it_in_time():
    late = [grid(0.4, queued=20, late=10, late_s=70.0)]
    assert run(Scaling(SETTINGS), late, 1, 6) == 4
    few = [grid(0.4, queued=100, late=5, late_s=70.0)]
    assert run(Scaling(SETTINGS), few, 1, 20) == 1


def test_a_short_burst_changes_nothing():
    scaling = Scaling(SETTINGS)
    assert run(scaling, [grid(0.4, 9, 9, 90.0)], 1, 3) == 1
    assert run(scaling, [grid(0.4)], 1, 2, start=3) == 1
    assert run(scaling, [grid(0.4, 9, 9, 90.0)], 1, 3, start=5) == 1


def test_grids_go_one_at_a_time_and_slowly():
    scaling = Scaling(SETTINGS)
    idle = [grid(0.05)] * 4
    assert run(scaling, idle, 4, 60) == 4
    assert run(scaling, idle, 4, 2, start=60) == 3
    assert run(scaling, idle, 3, 28, start=62) == 3
    assert run(scaling, idle, 3, 5, start=90) == 2


def test_work_that_comes_back_stops_the_way_down():
    scaling = Scaling(SETTINGS)
    run(scaling, [grid(0.05)] * 4, 4, 50)
    assert run(scaling, [grid(0.45)] * 4, 4, 20, start=50) == 4
    assert run(scaling, [grid(0.05)] * 4, 4, 50, start=70) == 4


loads = st.builds(
    grid, st.floats(0, 1), st.integers(0, 100), st.integers(0, 100), st.floats(0, 1000)
)


@given(
    st.lists(st.lists(loads, min_size=1, max_size=8), max_size=40), st.integers(1, 8)
)
def test_the_bounds_hold_whatever_comes(rounds, target):
    scaling = Scaling(SETTINGS)
    for second, grids in enumerate(rounds):
        before = target
        target = scaling.decide(grids, target, 10.0 * second)
        assert 1 <= target <= 8
        assert target >= before - 1
