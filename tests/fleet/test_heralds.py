"""A grid's notices: what the scheduler's own cache, queue and clock say, no more and no less."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from core_inputs import PAGE, config_of, grid_of, request_of
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from medha_actors.core.page_store import PageStore
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.simulator import Simulation
from medha_actors.fleet.herald import Herald
from medha_actors.fleet.views import GridView, ask_of
from medha_actors.messages import Accepted
from medha_actors.tuning import FairnessConfig

FEW = 7  # requests that come at once: so few are no rate of arrivals yet


def simulation_of(policy="lars", groups=1, pages=2000, **more):
    grid = grid_of(
        1, groups, pages=pages, length=4000, cutoff=400 if groups > 1 else None
    )
    model = ExecutionModel.analytic(1, token_s=1e-3)
    return Simulation(config_of(policy, **more), grid, model)


def names_in(simulation):
    keys = set()
    for pages in simulation.scheduler.live.kv.store.groups:
        keys |= set(pages.page_of)
    return {int.from_bytes(key[:8], "little") for key in keys}


def herald_of(simulation):
    return Herald(simulation.scheduler, slots=64)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_view_has_the_pages_of_the_grid_however_they_come_and_go(groups):
    """Few pages, so that many are forgotten, some before the herald comes; one hears it from its
    start, another one later."""
    simulation = simulation_of(groups=groups, pages=150)
    simulation.run([request_of(f"early{number}", 90, 6, at=0.0) for number in range(3)])
    assert names_in(simulation)
    herald = herald_of(simulation)
    first = GridView("first")
    late = GridView("late")
    at = simulation.now + 1.0
    assert first.heard(herald.whole(at), at)
    assert first.pages == names_in(simulation)
    for round_ in range(12):
        requests = [
            request_of(
                f"{round_}-{number}",
                60 + 40 * number,
                6,
                at=at,
                begins=range(round_ % 3),
            )
            for number in range(4)
        ]
        simulation.run(requests)
        at = simulation.now + 1.0
        assert first.heard(herald.tell(at), at)
        if round_ == 6:
            assert late.heard(herald.whole(at), at)
        elif round_ > 6:
            assert late.heard(herald.tell(at), at) is False  # one was only for `first`
            assert late.heard(herald.whole(at), at)
            assert first.heard(herald.whole(at), at)
        assert first.pages == names_in(simulation)
    assert late.pages == first.pages
    assert first.pages


def counted(store):
    """In how many places each key is found."""
    places = Counter()
    for pages, slots in zip(store.groups, store.slots, strict=True):
        places.update(pages.page_of.keys())
        places.update(slots.slot_of.keys())
    return places


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 5), st.integers(0, 4)), max_size=60
    ),
    st.integers(0, 3),
)
def test_news_are_the_difference_between_then_and_now(steps, slots):
    """Pages of two groups are published, withdrawn, given back, and pushed out to slots (if there
    are at least two) in any order."""
    store = PageStore(2, 6, slots)
    known = Counter()
    assert store.news.take() == {}
    held = {}
    for group, name, deed in steps:
        key = bytes([name]) * 16
        if deed == 0 and (group, key) not in held and store.available(group):
            page = store.take(group)
            if store.publish(group, page, key):
                held[group, key] = page
            else:
                store.give_back(group, [page])
        elif deed == 1 and (group, key) in held:
            store.withdraw(group, held[group, key])
            store.give_back(group, [held.pop((group, key))])
        elif deed == 2 and (group, key) in held:
            store.give_back(group, [held.pop((group, key))])
        elif deed == 3 and not any(holder == group for holder, _ in held):
            store.restart([group], found=())
        elif deed == 4:
            news = store.news.take()
            assert all(news.values())
            known.update(news)
            assert +known == counted(store)
    known.update(store.news.take())
    assert +known == counted(store)


@pytest.mark.parametrize("policy", ["fcfs_chunked", "edf"])
def test_what_a_newcomer_would_wait_is_what_the_scheduler_then_says(policy):
    """Where nobody decodes, and newcomers go last, it is that of Scheduler.add."""
    draw = random.Random(policy)
    simulation = simulation_of(policy)
    scheduler = simulation.scheduler
    for number in range(12):
        scheduler.add(request_of(f"q{number}", draw.randint(20, 100), 4, at=0.0), 0.0)
    view = GridView("grid")
    view.heard(herald_of(simulation).whole(0.0), 0.0)
    request = request_of("new", 200, 4, at=0.0)
    prediction = view.predict(ask_of(request, None, PAGE))
    answer = scheduler.add(request, 0.0)
    assert isinstance(answer, Accepted)
    assert prediction.ttft_s == pytest.approx(answer.predicted_ttft_s, rel=0.02)
    assert prediction.work_s == pytest.approx(0.2, rel=0.02)


@pytest.mark.parametrize("policy", ["lars", "spf", "aspf", "fcfs_chunked"])
@pytest.mark.parametrize("prompt", [40, 300, 1500])
def test_predicted_waits_are_those_of_the_simulation(policy, prompt):
    """Long ones wait already; a newcomer comes second by second later, and nobody after it."""
    simulation = simulation_of(policy, objectives={"ttft_floor_s": 0.0})
    scheduler = simulation.scheduler
    queue = [request_of(f"q{number}", 900, 1, at=0.0) for number in range(FEW)]
    for request in queue:
        scheduler.add(request, 0.0)
    view = GridView("grid")
    view.heard(herald_of(simulation).whole(0.5), 0.5)
    newcomer = request_of("new", prompt, 1, at=0.5)
    predicted_s = view.predict(ask_of(newcomer, None, PAGE)).ttft_s
    for request in queue:
        scheduler.cancel(request.id, 0.5)
    played = simulation_of(policy, objectives={"ttft_floor_s": 0.0})
    ttft_s = played.run([*queue, newcomer]).requests["new"].ttft_s
    assert predicted_s == pytest.approx(ttft_s, rel=0.4, abs=0.45)


def test_under_lars_a_short_newcomer_waits_for_less_than_a_long_one():
    simulation = simulation_of("lars")
    for number in range(FEW):
        simulation.scheduler.add(request_of(f"q{number}", 900, 4, at=0.0), 0.0)
    notice = herald_of(simulation).tell(0.5)
    waits = [wait_s for _, wait_s in notice.waits]
    assert waits == sorted(waits)
    assert waits[0] < 0.5 * waits[-1]
    assert notice.queued == FEW


def test_work_that_will_be_late_is_told():
    simulation = simulation_of("lars", tpot_s=0.01)
    herald = herald_of(simulation)
    idle = herald.tell(0.0)
    assert (idle.pace, idle.load, idle.late) == (1.0, 0.0, 0)
    for number in range(4):
        simulation.scheduler.add(request_of(f"d{number}", 2, 50, at=0.0), 0.0)
    for number in range(20):
        simulation.scheduler.add(request_of(f"q{number}", 600, 4, at=0.0), 0.0)
    notice = herald.tell(0.0)
    assert notice.late > 10
    assert 0.4 * notice.late < notice.late_s <= 0.6 * notice.late


def test_decodes_slow_prefills_down():
    simulation = simulation_of("lars", tpot_s=0.04)
    herald = herald_of(simulation)
    for number in range(5):
        simulation.expect(request_of(f"d{number}", 2, 500, at=0.0))
    simulation.begin()
    while simulation.now < 0.2:
        simulation.step()
    notice = herald.tell(simulation.now)
    # five rows of a millisecond in a batch of 20
    assert notice.pace == pytest.approx(0.75)
    assert notice.slots == 64 - 5


def test_a_busy_grid_says_so_and_an_idle_one_too():
    simulation = simulation_of("lars", tpot_s=0.2)
    herald = herald_of(simulation)
    herald.tell(0.0)
    simulation.run([request_of(f"r{n}", 1000, 1, at=float(n)) for n in range(40)])
    busy = herald.tell(simulation.now).load
    assert busy > 0.9
    for second in range(60):
        last = herald.tell(simulation.now + 1 + second)
    assert last.load < 0.01


def test_a_tenant_that_has_many_waiting_waits_for_its_own():
    """Two grids; a crowd is in one of them. Its next request is told to go to the other one,
    although a stranger would be served in the first as soon."""
    views = {}
    for name in ("crowded", "shared"):
        simulation = simulation_of(
            "fcfs_chunked", fairness=FairnessConfig(most_advance_s=0.0)
        )
        for number in range(FEW):
            tenant = "crowd" if name == "crowded" else f"one of {number}"
            request = replace(request_of(f"q{number}", 900, 4, at=0.0), tenant=tenant)
            simulation.scheduler.add(request, 0.0)
        views[name] = GridView(name)
        views[name].heard(herald_of(simulation).whole(0.0), 0.0)
    request = request_of("new", 800, 4, at=0.0)

    def ttft_s(name, tenant):
        return (
            views[name]
            .predict(ask_of(replace(request, tenant=tenant), None, PAGE))
            .ttft_s
        )

    assert ttft_s("crowded", "crowd") > 6.0
    assert ttft_s("crowded", "stranger") < 3.0
    assert ttft_s("shared", "crowd") == ttft_s("shared", "stranger")


def test_only_the_largest_of_many_tenants_have_waits_of_their_own():
    simulation = simulation_of("lars")
    for number in range(20):
        for name in range(number % 10 + 1):
            request = request_of(f"q{number}-{name}", 50, 4, at=0.0)
            simulation.scheduler.add(replace(request, tenant=f"t{number}"), 0.0)
    herald = herald_of(simulation)
    told = [dict(herald.tell(0.1 * number).tenants) for number in range(6)]
    assert [len(tenants) for tenants in told] == [1, 2, 3, 4, 4, 4]
    assert set(told[3]) == {"t8", "t9", "t18", "t19"}
    changed = [name for name, points in told[4].items() if told[3][name] != points]
    assert len(changed) <= 1  # in turn
