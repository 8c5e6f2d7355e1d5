"""Tenants share the machine by predicted seconds of work: what each is given, and who goes before
whom."""

import itertools

import msgspec
import pytest
from core_inputs import config_of, grid_of, request_of
from core_world import World
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_actors.config import load
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.scheduler import Scheduler
from medha_actors.core.simulator import Simulation, results_of
from medha_actors.errors import ConfigError
from medha_actors.messages import Accepted, Rejected
from medha_actors.tuning import AdmissionConfig, FairnessConfig

# What one chunk may be off: tables are interpolated, and the smallest chunk runs even
# if it does not fit.
ROUNDING = 1.1


def of(tenant, name, prompt=100, output=1, **more):
    return msgspec.structs.replace(
        request_of(name, prompt, output, **more), tenant=tenant
    )


def scheduler_of(policy="spf", advance_s=0.0, weights=None, enabled=True, **more):
    fairness = FairnessConfig(
        enabled=enabled, weights=weights or {}, most_advance_s=advance_s
    )
    config = config_of(policy, fairness=fairness, **more)
    model = ExecutionModel.analytic(2, token_s=1e-3, step_s=2e-3)
    grid = grid_of(stages=2, pages=16_384, length=32_000)
    return Scheduler(config.scheduler, config.objectives, None, grid, model)


def step(scheduler, now):
    """One batch there and back: the instant after it, and the prefill seconds by request."""
    before = {one.id: one.load_s for one in scheduler.live.queue.ordered(now)}
    batch = scheduler.next_batch(now)
    if batch is None:
        return now, {}
    after = {one.id: one.load_s for one in scheduler.live.queue.ordered(now)}
    now += batch.predicted_s
    scheduler.complete(results_of(batch, (batch.predicted_s,)), now)
    given_s = {name: load_s - after.get(name, 0.0) for name, load_s in before.items()}
    return now, {name: seconds for name, seconds in given_s.items() if seconds > 1e-9}


def first_of(scheduler, now=0.0):
    return next(scheduler.live.queue.ordered(now)).id


weights = st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=2, max_size=4)
prompts = st.lists(st.integers(1, 2000), min_size=2, max_size=6)


@settings(deadline=None, max_examples=20)
@given(
    weights=weights,
    prompts=prompts,
    policy=st.sampled_from(["lars", "spf", "dboost", "fcfs_chunked", "guardc"]),
    advance_s=st.sampled_from([0.0, 0.0, 0.4]),
)
def test_while_all_have_work_each_gets_its_share_within_a_batch(
    weights, prompts, policy, advance_s
):
    """And within its advance, which is 0 in most examples."""
    names = [f"t{number}" for number in range(len(weights))]
    by_tenant = dict(zip(names, weights, strict=True))
    scheduler = scheduler_of(policy, advance_s, by_tenant)
    owner = {}
    for number, prompt in enumerate(prompts * len(names)):
        # tenants take turns, and each has prompts of all lengths
        tenant = names[(number + number // len(prompts)) % len(names)]
        answer = scheduler.add(of(tenant, f"r{number}", prompt), 0.0)
        assert isinstance(answer, Accepted)
        owner[f"r{number}"] = tenant
    got = dict.fromkeys(names, 0.0)
    now = 0.0
    whole = sum(weights)
    batch_s = ROUNDING * scheduler.budget_s
    while scheduler.live.queue.tenants == len(names):
        now, given_s = step(scheduler, now)
        for name, seconds in given_s.items():
            got[owner[name]] += seconds
        if scheduler.live.queue.tenants < len(names):
            break
        total = sum(got.values())
        for name, weight in zip(names, weights, strict=True):
            share = weight / whole
            behind = max(1.0, share * (len(names) - 1))
            assert got[name] <= share * total + batch_s + advance_s
            assert got[name] >= share * total - behind * (batch_s + advance_s)


@settings(deadline=None, max_examples=10)
@given(
    greedy=st.integers(5, 60),
    modest=st.integers(1, 20),
    advance_s=st.sampled_from([0.0, 0.5]),
)
def test_nothing_is_left_undone_while_anybody_waits(greedy, modest, advance_s):
    """The machine is never idle, and all that is left is the greedy one's."""
    scheduler = scheduler_of(advance_s=advance_s)
    for number in range(greedy):
        scheduler.add(of("greedy", f"g{number}", 200), 0.0)
    for number in range(modest):
        scheduler.add(of("modest", f"m{number}", 150), 0.0)
    now = 0.0
    while len(scheduler.live.queue):
        now, given_s = step(scheduler, now)
        assert sum(given_s.values()) > 0
    assert (
        len(scheduler.live.queue.shares) == 0
    )  # nobody waits: nobody is owed anything


def test_one_that_comes_goes_before_a_backlog_whatever_the_policy():
    for policy in ("lars", "spf", "dboost", "fcfs_chunked", "fcfs", "guardc", "edf"):
        scheduler = scheduler_of(policy)
        for number in range(40):
            scheduler.add(of("greedy", f"g{number}", 300), 0.0)
        now = 0.0
        for _ in range(4):
            now, _ = step(scheduler, now)
        scheduler.add(of("modest", "m", 300, at=now), now)
        begun = len(scheduler.live.queue.started) if policy == "fcfs" else 0
        order = [one.id for one in scheduler.live.queue.ordered(now)]
        assert order[begun] == "m"  # under fcfs, what has begun runs to its end


def test_priority_orders_a_tenants_own_requests_and_nobody_elses():
    scheduler = scheduler_of("spf")
    scheduler.add(of("a", "a0", 3000), 0.0)
    now, _ = step(scheduler, 0.0)
    scheduler.add(of("b", "plain", 1000, at=now), now)
    scheduler.add(of("b", "first", 1000, at=now, priority=-5), now)
    scheduler.add(of("a", "pushy", 1000, at=now, priority=-(2**31)), now)
    order = [one.id for one in scheduler.live.queue.ordered(now)]
    assert order[0] == "first"
    assert order.index("first") < order.index("plain")
    assert order.index("pushy") < order.index("a0")


def test_without_fairness_all_are_one_tenant():
    for enabled in (True, False):
        scheduler = scheduler_of("spf", enabled=enabled)
        for number in range(30):
            scheduler.add(of("greedy", f"g{number}", 100), 0.0)
        now, _ = step(scheduler, 0.0)
        scheduler.add(of("modest", "m", 120, at=now), now)
        assert (first_of(scheduler, now) == "m") == enabled


@pytest.mark.parametrize("policy", ["lars", "spf", "fcfs", "aspf"])
def test_one_tenant_is_served_as_if_there_were_none(policy):
    def times(enabled, tenant):
        fairness = FairnessConfig(enabled=enabled)
        config = config_of(policy, fairness=fairness, max_running_requests=6)
        model = ExecutionModel.analytic(2, token_s=1e-3, step_s=2e-3)
        simulation = Simulation(
            config, grid_of(stages=2, pages=4096, length=8000), model
        )
        rows = [(40 + 97 * number % 400, 0.05 * number) for number in range(40)]
        rows[7] = (3000, rows[7][1])
        requests = [
            of(tenant, f"r{number}", prompt, 5, at=at)
            for number, (prompt, at) in enumerate(rows)
        ]
        logs = simulation.run(requests).requests
        return {name: (log.token_times, log.answer) for name, log in logs.items()}

    assert times(True, "ann") == times(True, "") == times(False, "ann")


def test_the_advance_pays_for_short_ones_beside_ones_own_long_prefill():
    scheduler = scheduler_of("spf", advance_s=5.0)
    for number in range(60):
        scheduler.add(of("greedy", f"g{number}", 300), 0.0)
    scheduler.add(of("modest", "long", 20_000), 0.0)
    now = 0.0
    for _ in range(60):  # the greedy one's advance is used up
        now, _ = step(scheduler, now)
    served = []
    for number in range(5):
        scheduler.add(of("modest", f"m{number}", 100, at=now), now)
        assert first_of(scheduler, now) == f"m{number}"
        while f"m{number}" in {one.id for one in scheduler.live.queue.ordered(now)}:
            now, given_s = step(scheduler, now)
            served += list(given_s)
    assert "m4" in served


def test_decodes_make_way_for_what_is_paid_for():
    scheduler = scheduler_of("spf", advance_s=2.0)
    for number in range(44):
        scheduler.add(of("greedy", f"g{number}", 10, output=400), 0.0)
    now = 0.0
    while len(scheduler.live.queue):
        now, _ = step(scheduler, now)
    for number in range(60):
        scheduler.add(of("greedy", f"w{number}", 300, at=now), now)
    for _ in range(40):
        now, _ = step(scheduler, now)
        scheduler.add(of("greedy", f"x{now}", 300, at=now), now)
    usual = scheduler.next_batch(now).decode_tokens
    scheduler.add(of("modest", "m", 300, at=now), now)
    batch = scheduler.next_batch(now)
    assert batch is not None
    assert 1 <= batch.decode_tokens < usual


def test_a_full_queue_has_room_for_who_has_less_than_its_part():
    scheduler = scheduler_of(max_waiting_requests=10)
    answers = [scheduler.add(of("greedy", f"g{number}"), 0.0) for number in range(12)]
    assert [type(answer) for answer in answers] == [Accepted] * 10 + [Rejected] * 2
    modest = [scheduler.add(of("modest", f"m{number}"), 0.0) for number in range(7)]
    assert [type(answer) for answer in modest] == [Accepted] * 5 + [Rejected] * 2


def test_what_one_is_told_follows_its_own_backlog_not_the_others():
    scheduler = scheduler_of("spf", advance_s=0.3, max_waiting_requests=1000)
    lone = scheduler_of("spf").add(of("modest", "m"), 0.0)
    told = [scheduler.add(of("greedy", f"g{number}"), 0.0) for number in range(200)]
    assert told[-1].predicted_ttft_s > 8.0
    modest = scheduler.add(of("modest", "m"), 0.0)
    assert modest.predicted_ttft_s < lone.predicted_ttft_s + 1.0
    alike = scheduler_of("spf", advance_s=1.0, enabled=False)
    for number in range(200):
        alike.add(of("greedy", f"g{number}"), 0.0)
    assert alike.add(of("modest", "m"), 0.0).predicted_ttft_s > 5.0


def test_appointments_of_one_tenant_keep_no_other_out():
    scheduler = scheduler_of(
        "spf", advance_s=0.3, admission=AdmissionConfig(late="shed")
    )
    answers = [
        scheduler.add(of("greedy", f"g{number}", ttft_s=1.0), 0.0)
        for number in range(200)
    ]
    assert [isinstance(answer, Rejected) for answer in answers].count(True) > 100
    for number in range(4):
        assert isinstance(
            scheduler.add(of("modest", f"m{number}", ttft_s=1.0), 0.0), Accepted
        )


@settings(deadline=None, max_examples=15)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 60), st.integers(1, 6)),
        min_size=1,
        max_size=25,
    ),
    st.sampled_from([0.0, 0.05, 1.0]),
    st.integers(1, 3),
)
def test_every_request_is_served_with_its_own_tokens(rows, advance_s, groups):
    fairness = FairnessConfig(most_advance_s=advance_s, weights={"a": 3.0})
    config = config_of("lars", fairness=fairness, max_running_requests=4)
    world = World(config, grid_of(2, groups, pages=24, cutoff=16, length=120))
    for number, (tenant, prompt, output) in enumerate(rows):
        world.add(of(tenant, f"r{number}", prompt, output, at=world.now))
        if number % 3 == 0:
            world.launch()
    world.drain()
    assert len(world.scheduler.live.queue.shares) == 0


def test_weights_are_bounded_numbers():
    for weight in (0.0, 1e9, float("nan")):
        with pytest.raises(ConfigError, match=r"scheduler\.fairness\.weights"):
            load({"scheduler": {"fairness": {"weights": {"a": weight}}}})


def test_many_tenants_are_forecast_as_a_few():
    scheduler = scheduler_of("spf", advance_s=0.2, max_waiting_requests=10_000)
    for number, size in zip(range(100), itertools.cycle((20, 100, 300)), strict=False):
        scheduler.add(of(f"t{number}", f"r{number}", size), 0.0)
    answer = scheduler.add(of("late", "late", 5000), 0.0)
    alone = scheduler_of("spf").add(of("late", "late", 5000), 0.0)
    assert answer.predicted_ttft_s > alone.predicted_ttft_s + 2.0
