"""Who goes first, and what comes of it: the paper's worked example, and the convoys it warns of."""

import itertools

import pytest
from core_inputs import config_of, grid_of, request_of
from hypothesis import given
from hypothesis import strategies as st

from medha_actors.core.chunking import LONE_BUDGETS
from medha_actors.core.orders import LANES_PER_OCTAVE, ORDERS
from medha_actors.core.policies import PrefillQueue
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.request import Milestones, RequestState
from medha_actors.core.simulator import Simulation

ALL = list(ORDERS)
BY_KEY = [name for name, order in ORDERS.items() if not order.guards]


def simulate(policy, requests, **scheduler):
    """One stage, 1 ms a token, budget 50 ms."""
    config = config_of(
        policy, tpot_s=0.05, max_chunk_tokens=256, max_batch_tokens=4096, **scheduler
    )
    grid = grid_of(pages=10_000, page=16, length=200_000)
    return (
        Simulation(config, grid, ExecutionModel.analytic(token_s=1e-3))
        .run(requests)
        .requests
    )


def worked_example(policy):
    """r_L: work 10 s, deadline 16 s, at t=0; two short ones: work 0.5 s, deadline 1 s, at t=5."""
    long = request_of("L", 10_000, 1, at=0.0, ttft_s=16.0)
    shorts = [request_of(f"S{i}", 500, 1, at=5.0, ttft_s=1.0) for i in (1, 2)]
    logs = simulate(policy, [long, *shorts])
    return {name: log.ttft_s for name, log in logs.items()}


@pytest.mark.parametrize("policy", ["fcfs", "fcfs_chunked"])
def test_in_arrival_order_both_short_requests_are_late(policy):
    ttft = worked_example(policy)
    assert ttft["L"] == pytest.approx(10.0, abs=0.1)
    assert ttft["S1"] > 5
    assert ttft["S2"] > 5


@pytest.mark.parametrize("policy", ["edf", "lrs"])
def test_by_deadline_or_raw_slack_the_short_ones_go_first(policy):
    ttft = worked_example(policy)
    assert max(ttft["S1"], ttft["S2"]) < 1.15  # a chunk of L was under way
    assert ttft["L"] == pytest.approx(11.0, abs=0.1)


def test_by_relative_slack_the_short_ones_overtake_as_soon_as_theirs_is_smaller():
    ttft = worked_example("lars")
    # rho_L is 0.6 all along while it runs; rho_S falls from 1.0 to 0.6 within 0.2 s,
    # then all three share.
    assert max(ttft["S1"], ttft["S2"]) < 1.4
    assert ttft["L"] == pytest.approx(11.0, abs=0.1)


def test_relative_slack_of_the_worked_example():
    config = config_of(tpot_s=0.05)
    grid = grid_of(pages=10_000, page=16, length=200_000)
    scheduler = Simulation(
        config, grid, ExecutionModel.analytic(token_s=1e-3)
    ).scheduler
    grace_s = (
        LONE_BUDGETS * scheduler.budget_s
    )  # of a batch on its way, which is no slack
    scheduler.add(request_of("L", 10_000, 1, at=0.0, ttft_s=16.0 + grace_s), 0.0)
    scheduler.add(request_of("S", 500, 1, at=5.0, ttft_s=1.0 + grace_s), 5.0)
    assert scheduler.live.by_id["L"].relative_slack(0.0) == pytest.approx(0.6, abs=0.01)
    assert scheduler.live.by_id["S"].relative_slack(5.0) == pytest.approx(1.0, abs=0.01)


def late_long(policy):
    """A long request that is past its deadline already, then a short one each second."""
    requests = [request_of("L", 20_000, 1, at=0.0, ttft_s=5.0)]
    requests += [request_of(f"S{i}", 100, 1, at=10.0 + i, ttft_s=1.0) for i in range(5)]
    logs = simulate(policy, requests)
    return max(log.ttft_s for name, log in logs.items() if name != "L"), logs[
        "L"
    ].ttft_s


def test_a_late_long_request_is_a_convoy_under_edf_but_not_under_lars():
    edf_short, _ = late_long("edf")
    lars_short, lars_long = late_long("lars")
    assert edf_short > 9
    assert lars_short < 1.5
    assert lars_long < 21


def test_lars_starves_nobody():
    """Short requests alone would take 95% of the machine; the long one still comes in before its
    deadline."""
    shorts = [request_of(f"S{i}", 95, 1, at=i * 0.1) for i in range(4000)]
    long = request_of("L", 5_000, 1, at=1.0, ttft_s=150.0)
    logs = simulate("lars", [long, *shorts])
    assert logs["L"].ttft_s < 150
    shorts_ttft = sorted(log.ttft_s for name, log in logs.items() if name != "L")
    assert shorts_ttft[len(shorts) // 2] < 1.0


def test_relegation_gives_up_a_lost_deadline_to_keep_one_that_can_be_kept():
    def longs(policy):
        requests = [
            request_of("lost", 10_000, 1, ttft_s=5.0),
            request_of("kept", 5_000, 1, at=6.0, ttft_s=6.0),
        ]
        logs = simulate(policy, requests)
        return logs["lost"].ttft_s, logs["kept"].ttft_s

    assert longs("lars")[1] > 8  # it waits for what is late anyway
    lost, kept = longs("relegation")
    assert kept < 6.0
    assert lost == pytest.approx(15.0, abs=0.2)


def test_nobody_is_relegated_for_ever():
    """Without its place back, the late one would wait for all the others, which come as fast as
    they can be served."""
    steady = [request_of(f"L{i}", 2_000, 1, at=2.0 * i, ttft_s=60.0) for i in range(20)]
    logs = simulate(
        "relegation", [request_of("lost", 2_000, 1, at=0.5, ttft_s=0.5), *steady]
    )
    assert logs["lost"].ttft_s < 8 * 2 + 4


def test_fcfs_does_not_interrupt_a_prefill_nor_let_decodes_ride():
    requests = [
        request_of("D", 50, 400, at=0.0),
        request_of("L", 5_000, 1, at=0.1),
        request_of("S", 50, 1, at=0.2),
    ]
    logs = simulate("fcfs", requests)
    stalls = [
        b - a
        for a, b in zip(logs["D"].token_times, logs["D"].token_times[1:], strict=False)
    ]
    assert max(stalls) > 4.9
    assert logs["S"].ttft_s > 4.8
    assert logs["L"].finished.preemptions == 0


def test_decodes_ride_along_under_the_other_policies():
    for policy in ("fcfs_chunked", "edf", "lrs", "lars"):
        logs = simulate(
            policy,
            [request_of("D", 50, 400, at=0.0), request_of("L", 5_000, 1, at=0.1)],
        )
        times = logs["D"].token_times
        assert max(b - a for a, b in itertools.pairwise(times)) <= 0.051


@pytest.mark.parametrize("policy", ALL)
def test_priority_comes_before_the_policy(policy):
    requests = [request_of(f"r{i}", 300, 1, at=0.0, priority=1) for i in range(5)]
    requests.append(request_of("urgent", 900, 1, at=0.001, priority=0))
    logs = simulate(policy, requests)
    # the one that had begun
    assert sum(log.ttft_s < logs["urgent"].ttft_s for log in logs.values()) <= 1


def state_of(serial, arrived, due, work, priority):
    state = RequestState(
        request=request_of(f"r{serial}", 1, priority=priority),
        serial=serial,
        milestones=Milestones(arrived, due),
        tpot_s=0.1,
        timeout_at=1e9,
        prompt=1,
        goal=1,
    )
    state.total_work_s = state.remaining_s = work
    return state


eighths = st.integers(0, 800).map(lambda number: number / 8)  # no ties by rounding
states = st.lists(
    st.tuples(
        eighths,
        eighths,
        st.integers(1, 500).map(lambda number: number / 8),
        st.integers(-1, 1),
    ),
    min_size=1,
    max_size=40,
)


@given(states, st.sampled_from(BY_KEY), eighths, st.sets(st.integers(0, 39)))
def test_the_queue_yields_the_order_of_the_keys(rows, policy, now, removed):
    queue = PrefillQueue(policy)
    everyone = [state_of(serial, *row) for serial, row in enumerate(rows)]
    for state in everyone:
        queue.put(state)
    for state in everyone:
        if state.serial in removed:
            queue.remove(state)
    left = [state for state in everyone if state.serial not in removed]
    assert list(queue.ordered(now)) == sorted(
        left, key=lambda state: queue.key(state, now)
    )
    assert queue.work_s() == pytest.approx(
        sum(state.remaining_s for state in left), abs=1e-6
    )
    assert len(queue) == len(left)


@given(states, st.floats(0, 300))
def test_lars_keys_are_relative_slack_up_to_the_rounding_of_work(rows, now):
    queue = PrefillQueue("lars")
    for serial, row in enumerate(rows):
        state = state_of(serial, *row)
        _, _, key, _ = queue.key(state, now)
        rho = state.relative_slack(now)
        assert key == pytest.approx(rho, rel=2 ** (0.5 / LANES_PER_OCTAVE) - 1 + 1e-9)
