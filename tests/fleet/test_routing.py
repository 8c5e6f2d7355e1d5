"""Who gets a request: properties that hold for every rule, and what each rule is for."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from medha_actors.fleet.notices import Notice, between
from medha_actors.fleet.routing import RULES, Router
from medha_actors.fleet.views import Ask
from medha_actors.fleet_config import RoutingConfig

PAGE = 16
COSTS = tuple((tokens, tokens / 1000) for tokens in (64, 512, 4096, 32_768))
IDLE = Notice(
    serial=0,
    whole=True,
    max_tokens=40_000,
    page_tokens=PAGE,
    room_tokens=100_000,
    slots=64,
    live=0,
    costs=COSTS,
    waits=((0.064, 0.0), (32.0, 0.0)),
    pace=1.0,
    load=0.0,
    queued=0,
    late=0,
    late_s=0.0,
    draining=False,
    came=b"",
    gone=b"",
)


def names(*numbers):
    return b"".join(number.to_bytes(8, "little") for number in numbers)


def waiting(seconds, **more):
    return replace(IDLE, waits=((0.064, seconds), (32.0, seconds)), live=1, **more)


def router_of(notices, rule="predicted", seed=0, **more):
    router = Router(RoutingConfig(router=rule, **more), random.Random(seed))
    for name, notice in notices.items():
        assert router.heard(name, notice, 0.0)
    return router


def ask(prompt=640, output=10, pages=()):
    return Ask(prompt_tokens=prompt, output_tokens=output, names=pages)


notices = st.builds(
    lambda wait_s, live, room, slots, longest, pace, draining, pages: replace(
        waiting(wait_s),
        live=live,
        room_tokens=room,
        slots=slots,
        max_tokens=longest,
        pace=pace,
        draining=draining,
        came=names(*range(pages)),
    ),
    st.floats(0, 100),
    st.integers(0, 200),
    st.integers(0, 50_000),
    st.integers(-1, 64),
    st.integers(1000, 40_000),
    st.floats(0.05, 1.0),
    st.booleans(),
    st.integers(0, 40),
)
fleets = st.lists(notices, min_size=1, max_size=6).map(
    lambda grids: {f"g{number}": notice for number, notice in enumerate(grids)}
)
asks = st.builds(
    lambda prompt, output: ask(prompt, output, range(prompt // PAGE)),
    st.integers(1, 20_000),
    st.integers(1, 2000),
)


@pytest.mark.parametrize("rule", RULES)
@given(fleets, asks, st.integers(0, 3))
def test_a_request_goes_to_a_grid_that_can_serve_it(rule, fleet, asked, seed):
    chosen = router_of(fleet, rule, seed).choose(asked, 0.0)
    needed = asked.prompt_tokens + asked.output_tokens
    able = [
        n
        for n, grid in fleet.items()
        if not grid.draining and needed <= grid.max_tokens
    ]
    assert (chosen.grid in able) if able else chosen is None


@pytest.mark.parametrize("rule", RULES)
@given(fleets, asks, st.integers(0, 3))
def test_a_seed_decides_everything(rule, fleet, asked, seed):
    assert router_of(fleet, rule, seed).choose(asked, 0.0) == router_of(
        fleet, rule, seed
    ).choose(asked, 0.0)


@given(fleets, asks)
def test_no_grid_with_room_was_predicted_to_be_sooner(fleet, asked):
    router = router_of(fleet, work_weight=0.0)
    every = {
        n: grid.predict(asked) for n, grid in router.grids.items() if grid.takes(asked)
    }
    chosen = router.choose(asked, 0.0)
    if chosen is None:
        return
    assert chosen.prediction == every[chosen.grid]
    rivals = [one.ttft_s for one in every.values() if one.room] or [
        one.ttft_s for one in every.values()
    ]
    assert chosen.prediction.ttft_s == min(rivals)


@given(fleets, asks)
def test_a_prediction_is_more_for_a_longer_prompt_and_less_with_a_hit(fleet, asked):
    router = router_of(fleet)
    for grid in router.grids.values():
        prediction = grid.predict(asked)
        cold = grid.predict(replace(asked, names=()))
        longer = grid.predict(replace(asked, prompt_tokens=asked.prompt_tokens + 5000))
        assert 0 <= prediction.hit_tokens < asked.prompt_tokens
        assert prediction.hit_tokens % PAGE == 0
        assert prediction.work_s <= cold.work_s
        assert longer.work_s >= prediction.work_s


@given(fleets, asks)
def test_what_was_sent_counts_until_a_notice_tells_of_it(fleet, asked):
    router = router_of(fleet)
    before = router.choose(asked, 0.0)
    if before is None:
        return
    view = router.grids[before.grid]
    after = view.predict(asked)
    assert after.ttft_s > before.prediction.ttft_s
    assert view.live == fleet[before.grid].live + 1
    router.heard(before.grid, fleet[before.grid], 0.02)  # made before it came there
    assert view.predict(asked) == after
    router.heard(before.grid, fleet[before.grid], 0.2)
    assert view.predict(asked) == before.prediction


def test_simultaneous_requests_spread_over_idle_grids():
    """Between two notices a router would otherwise send everything to one."""
    router = router_of({f"g{n}": IDLE for n in range(8)})
    taken = Counter(router.choose(ask(), 0.0).grid for _ in range(80))
    assert set(taken.values()) == {10}


def test_a_warm_prefix_is_worth_a_wait_and_no_more():
    warm = range(32)
    asked = ask(640, 10, tuple(range(40)))  # 512 of 640 tokens are found

    def chosen(wait_s, **more):
        fleet = {"cold": IDLE, "warm": waiting(wait_s, came=names(*warm))}
        return router_of(fleet, **more).choose(asked, 0.0).grid

    assert chosen(0.0) == "warm"
    assert chosen(0.5, work_weight=0.0) == "warm"
    assert chosen(0.6, work_weight=0.0) == "cold"
    assert chosen(0.9, work_weight=1.0) == "warm"
    assert chosen(1.1, work_weight=1.0) == "cold"


def test_prefix_alone_follows_a_warm_prefix_into_any_queue():
    fleet = {"cold": IDLE, "warm": waiting(1e4, came=names(*range(32)))}
    assert (
        router_of(fleet, "prefix").choose(ask(640, 10, range(40)), 0.0).grid == "warm"
    )
    little = router_of(fleet, "prefix").choose(ask(10_000, 10, range(32)), 0.0)
    assert little.grid == "cold"


def test_two_choices_take_the_shorter_queue():
    router = router_of(
        {"few": replace(IDLE, live=3), "many": replace(IDLE, live=9)}, "two_choices"
    )
    assert {router.choose(ask(), 0.0).grid for _ in range(6)} == {"few"}


def test_pools_keep_long_prompts_apart():
    router = router_of(
        {f"g{n}": IDLE for n in range(8)}, "pools", long_tokens=10_000, long_share=0.25
    )
    long = {router.choose(ask(20_000), 0.0).grid for _ in range(20)}
    short = {router.choose(ask(500), 0.0).grid for _ in range(60)}
    assert long == {"g0", "g1"}
    assert short == {f"g{n}" for n in range(2, 8)}


def test_a_grid_without_room_is_the_last_resort():
    full = replace(IDLE, room_tokens=0)
    assert (
        router_of({"full": full, "late": waiting(50.0)}).choose(ask(), 0.0).grid
        == "late"
    )
    assert router_of({"full": full}).choose(ask(), 0.0).grid == "full"


def test_a_missed_notice_is_noticed():
    router = router_of({"g": IDLE})
    assert router.heard("g", replace(IDLE, whole=False, serial=1, came=names(5)), 0.1)
    assert router.grids["g"].pages == {5}
    assert not router.heard(
        "g", replace(IDLE, whole=False, serial=3, came=names(6)), 0.3
    )
    assert router.grids["g"].pages == {5}
    assert router.heard("g", replace(IDLE, serial=3, came=names(7)), 0.3)
    assert router.heard("g", replace(IDLE, whole=False, serial=4, gone=names(7)), 0.4)
    assert router.grids["g"].pages == set()


def test_a_lost_grid_gets_nothing():
    router = router_of({"a": IDLE, "b": IDLE})
    router.lost("a")
    assert {router.choose(ask(), 0.0).grid for _ in range(10)} == {"b"}
    assert router.choose(ask(), 0.0, among=["a"]) is None


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), max_size=5),
    st.floats(-1, 101),
)
def test_a_line_stays_between_its_points(points, x):
    points = sorted(dict(points).items())
    values = [y for _, y in points]
    assert (
        (min(values) - 1e-6 <= between(points, x) <= max(values) + 1e-6)
        if points
        else True
    )
