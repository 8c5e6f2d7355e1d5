"""The rules of single orders with numbers worked out by hand, and what all of them promise."""

import math

import pytest
from core_inputs import config_of, grid_of, request_of
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_actors.core.congestion import Congestion
from medha_actors.core.orders import LEAST_WORK_S, ORDERS
from medha_actors.core.policies import PrefillQueue
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.request import Milestones, Piece, RequestState
from medha_actors.core.simulator import Simulation
from medha_actors.tuning import OrderConfig

ALL = list(ORDERS)
BOUNDED = [name for name, order in ORDERS.items() if order.least is not None]
NEW = ["dspf", "aspf", "boost", "dboost", "preflow", "dpreflow", "guardc"]
OTHERS = [name for name in NEW if name != "dboost"]


def state_of(serial, arrived, work, deadline=None, remaining=None, priority=0):
    """A waiting request; `deadline`: seconds after its arrival, by default 1.5 times its work."""
    deadline_s = 1.5 * work if deadline is None else deadline
    state = RequestState(
        request=request_of(f"r{serial}", 1, priority=priority),
        serial=serial,
        milestones=Milestones(arrived, arrived + deadline_s),
        tpot_s=0.1,
        timeout_at=1e9,
        prompt=1,
        goal=1,
    )
    state.total_work_s = work
    state.remaining_s = work if remaining is None else remaining
    return state


def first_of(policy, *states, now=0.0, **given):
    """The serial of the first, and of each order of insertion the same."""
    firsts = set()
    for inserted in (states, states[::-1]):
        queue = PrefillQueue(policy, OrderConfig(**given))
        for state in inserted:
            queue.put(state)
        firsts.add(next(queue.ordered(now)).serial)
    assert len(firsts) == 1
    return firsts.pop()


def test_dspf_with_default_deadlines_is_spf():
    # 10 s of work at 0: due at 15, instant 15 + 185 = 200; 1 s of work: arrival + 1.5 + 18.5.
    long = state_of(0, 0.0, 10.0)
    for policy in ("spf", "dspf"):
        assert first_of(policy, long, state_of(1, 179.0, 1.0)) == 1
        assert first_of(policy, long, state_of(1, 181.0, 1.0)) == 0


def test_under_dspf_an_objective_moves_its_request_and_under_spf_it_does_not():
    long = state_of(0, 0.0, 10.0)
    patient = state_of(1, 179.0, 1.0, deadline=30.0)  # 179 + 30 + 18.5 = 227.5, not 199
    assert first_of("spf", long, patient) == 1
    assert first_of("dspf", long, patient) == 0
    hurried = state_of(0, 0.0, 10.0, deadline=12.0)  # 12 + 185 = 197, not 200
    assert first_of("dspf", hurried, state_of(1, 178.0, 1.0)) == 0
    assert first_of("dspf", long, state_of(1, 178.0, 1.0), ageing_works=1.0) == 0


def test_aspf_is_dspf_until_much_is_waiting():
    # prefills of 2 s: the sixth finds 10 s of work, A would be 4 * 10 / 2 = 20, within a quarter of
    # 18.5; the ninth finds 16 s: 32; the tenth 18 s: 36, within a quarter of 32
    queue = PrefillQueue("aspf")
    states = [state_of(serial, 0.0, 2.0) for serial in range(10)]
    for state in states[:6]:
        queue.put(state)
    assert queue.overtaken_until(states[0]) == 3.0 + 18.5 * 2.0
    for state in states[6:]:
        queue.put(state)
    assert queue.overtaken_until(states[0]) == 3.0 + 32.0 * 2.0
    for state in states[1:]:
        queue.remove(state)
    queue.put(state_of(10, 0.0, 2.0))
    assert queue.overtaken_until(states[0]) == 3.0 + 18.5 * 2.0


def test_aspf_ages_by_no_more_than_a_bound():
    congestion = Congestion(18.5, 4.0, 200.0)
    assert congestion.arrived(1.0, 1e9)
    assert congestion.ageing_works == 200.0
    steady = Congestion(18.5, 0.0, 200.0)
    assert not steady.arrived(1.0, 1e9)
    assert steady.ageing_works == 18.5


def test_boost_brings_short_work_forward_by_what_the_decay_says():
    # decay 0.1/s: boost(10) = -ln(1 - e^-1) / 0.1 = 4.587 s, boost(1) = -ln(1 - e^-0.1) / 0.1 =
    # 23.522 s: the short one goes first up to 18.935 s after the long one's arrival.
    long = state_of(0, 0.0, 10.0)
    assert first_of("boost", long, state_of(1, 18.9, 1.0), boost_decay_per_s=0.1) == 1
    assert first_of("boost", long, state_of(1, 19.0, 1.0), boost_decay_per_s=0.1) == 0
    # from the deadlines on, 15 and arrival + 1.5: 13.5 s later; and in lanes, in which 10 count as
    # 8: boost(8) = 5.966 s
    assert first_of("dboost", long, state_of(1, 31.0, 1.0), boost_decay_per_s=0.1) == 1
    assert first_of("dboost", long, state_of(1, 31.1, 1.0), boost_decay_per_s=0.1) == 0


def test_dboost_keeps_equals_in_the_order_of_their_deadlines():
    # 10 and 7 count as 8: the shorter one has the later deadline
    long = state_of(0, 0.0, 10.0, deadline=15.0)
    shorter = state_of(1, 5.0, 7.0, deadline=15.5)
    assert first_of("dboost", long, shorter, boost_decay_per_s=0.1) == 0
    # what is much shorter does not wait: boost(2) = 17.1 s
    short = state_of(2, 5.0, 2.0, deadline=20.0)
    assert first_of("dboost", long, short, boost_decay_per_s=0.1) == 2


def test_dboost_lets_a_prefill_of_a_few_batches_go_on():
    # a grace of 0.3 s: up to 1.2 s of work; begun, 1 s counts as 0.25, before 0.5
    order = OrderConfig(boost_decay_per_s=0.1)
    for begun, grace_s, first in ((False, 0.3, 1), (True, 0.3, 0), (True, 0.2, 1)):
        queue = PrefillQueue("dboost", order)
        state = state_of(0, 0.0, 1.0)
        state.grace_s = grace_s
        if begun:
            state.pieces = [Piece(0, 0)]
        queue.put(state)
        queue.put(state_of(1, 0.1, 0.5))
        assert next(queue.ordered(0.1)).serial == first


def test_preflow_doubles_the_urgency_each_ten_seconds():
    # 10 log2(8 * 8) = 60 s against 0 s for one second of work
    long = state_of(0, 0.0, 8.0)
    assert first_of("preflow", long, state_of(1, 59.0, 1.0)) == 1
    assert first_of("preflow", long, state_of(1, 61.0, 1.0)) == 0
    # a quarter left: 10 log2(8 * 2) = 40 s
    nearly = state_of(0, 0.0, 8.0, remaining=2.0)
    assert first_of("preflow", nearly, state_of(1, 41.0, 1.0)) == 0
    assert first_of("preflow", long, state_of(1, 7.0, 1.0), preflow_doubling_s=1.0) == 0
    # from the deadlines on, 12 and arrival + 1.5: 10.5 s later
    assert first_of("dpreflow", long, state_of(1, 70.0, 1.0)) == 1
    assert first_of("dpreflow", long, state_of(1, 71.0, 1.0)) == 0


def test_guardc_runs_the_shortest_that_makes_nobody_late():
    # At 0 the long one has 12 - 10 = 2 s to spare: one second of work goes before it, 3 s do not.
    long = state_of(0, 0.0, 10.0, deadline=12.0)
    assert first_of("guardc", long, state_of(1, 0.0, 1.0)) == 1
    assert first_of("guardc", long, state_of(1, 0.0, 3.0, deadline=30.0)) == 0
    assert first_of("spf", long, state_of(1, 0.0, 3.0, deadline=30.0)) == 1
    # what cannot be in time any more makes nobody late either
    assert first_of("guardc", long, state_of(1, 0.0, 3.0, deadline=2.0)) == 0


def test_guardc_leaves_out_the_largest_of_those_who_cannot_all_be_in_time():
    # 10 s until 12 and 4 s until 13: together 14. The largest is lost, so the other is let through.
    long = state_of(0, 0.0, 10.0, deadline=12.0)
    middle = state_of(1, 0.0, 4.0, deadline=13.0)
    assert first_of("guardc", long, middle) == 1
    # and so is 1 s of work beside them: 13 - 4 = 9 s to spare
    assert first_of("guardc", long, middle, state_of(2, 0.0, 1.0, deadline=0.5)) == 2


def test_guardc_rescues_what_is_late_by_8_times_its_work():
    lost = state_of(0, 0.0, 2.0, deadline=1.0)  # due at 1, rescued at 17
    fresh = state_of(1, 16.5, 1.0, deadline=1.2)
    assert first_of("guardc", lost, fresh, now=16.5) == 1
    assert first_of("guardc", lost, fresh, now=17.1) == 0
    assert first_of("guardc", lost, fresh, now=16.5, guard_works=7.0) == 0
    # what came before by spf and is small beside it still goes first, what came after does not
    small = state_of(2, 17.0, 0.1, deadline=1.0)
    assert first_of("guardc", lost, small, now=17.1) == 2
    assert first_of("guardc", lost, state_of(2, 41.0, 0.1, deadline=1.0), now=41.0) == 0


eighths = st.integers(0, 800).map(lambda number: number / 8)
works = st.integers(1, 500).map(lambda number: number / 8)
rows = st.lists(
    st.tuples(eighths, works, eighths, st.integers(0, 8).map(lambda part: part / 8)),
    min_size=2,
    max_size=40,
)


def states_of(rows):
    return [
        state_of(serial, arrived, work, deadline=deadline, remaining=work * part)
        for serial, (arrived, work, deadline, part) in enumerate(rows)
    ]


@given(rows, st.sampled_from(BOUNDED), st.floats(0, 300))
def test_after_an_instant_no_newcomer_goes_before_a_request(rows, policy, now):
    """The bound on starvation: `overtaken_until`. Guardc keeps it from the rescue on."""
    states = states_of(rows)
    queue = PrefillQueue(policy)
    for state in states:
        queue.put(state)
    place = {state.serial: number for number, state in enumerate(queue.ordered(now))}
    for state in states:
        until = queue.overtaken_until(state)
        assert until >= state.milestones.arrived_at
        if ORDERS[policy].guards and now <= until:
            continue
        for other in states:
            if other.milestones.arrived_at > until:
                assert place[state.serial] < place[other.serial]


@given(
    st.lists(
        st.tuples(eighths, works, eighths, st.booleans()), min_size=2, max_size=40
    ),
    st.sampled_from([1.0, 5.0, 50.0]),
)
def test_whatever_dboost_learns_nobody_is_overtaken_for_longer_than_is_stated(
    rows, longest_s
):
    """The bound that needs no knowledge of what was learned: deadline + longest_s * ln(1.42 work /
    10 ms). The decay moves with every arrival, as works and backlog do, and all places with it."""
    queue = PrefillQueue("dboost", OrderConfig(boost_longest_s=longest_s))
    waiting = []
    for serial, (arrived, work, deadline, served) in enumerate(sorted(rows)):
        if served and waiting:
            first = next(queue.ordered(arrived))
            queue.remove(first)
            waiting.remove(first)
        newcomer = state_of(serial, arrived, work, deadline=deadline)
        queue.put(newcomer)
        waiting.append(newcomer)
        place = {
            state.serial: number for number, state in enumerate(queue.ordered(arrived))
        }
        for state in waiting:
            stated = state.due_at + longest_s * math.log(
                1.42 * state.total_work_s / LEAST_WORK_S
            )
            assert queue.overtaken_until(state) <= stated + 1e-6
            for other in waiting:
                if other.milestones.arrived_at > stated:
                    assert place[state.serial] < place[other.serial]


@settings(max_examples=5, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 300), st.integers(10, 400)), min_size=1, max_size=120
    ),
    st.integers(400, 3000),
)
def test_under_dboost_a_prefill_waits_for_no_more_work_than_came_until_its_bound(
    flood, tokens
):
    """1 ms a token on one stage: whoever comes after the bound takes none of the machine before the
    first token of the long one."""
    longest_s = 0.5
    at = 1.0
    long = request_of("L", tokens, 1, at=at)
    shorts = [
        request_of(f"S{i}", size, 1, at=t / 50) for i, (t, size) in enumerate(flood)
    ]
    endless = [request_of(f"E{i}", 100, 1, at=at + i * 0.08) for i in range(600)]
    order = OrderConfig(boost_longest_s=longest_s)
    config = config_of("dboost", tpot_s=0.05, max_chunk_tokens=256, order=order)
    grid = grid_of(pages=20_000, page=16, length=200_000)
    simulation = Simulation(config, grid, ExecutionModel.analytic(token_s=1e-3))
    logs = simulation.run([long, *shorts, *endless]).requests
    due_at = logs["L"].answer.deadline_at
    bound = due_at + longest_s * math.log(tokens * 1e-3 / LEAST_WORK_S)
    came_s = [
        one.prompt_tokens * 1e-3
        for one in (*shorts, *endless)
        if one.arrived_at <= bound
    ]
    done_by = max(bound, at) + sum(came_s) + tokens * 1e-3
    assert at + logs["L"].ttft_s <= done_by + 0.1


@given(rows, st.sampled_from(ALL), st.floats(0, 300), st.randoms(use_true_random=False))
def test_the_order_is_total_and_does_not_depend_on_who_was_put_in_first(
    rows, policy, now, chance
):
    states = states_of(rows)
    shuffled = list(states)
    chance.shuffle(shuffled)
    orders = []
    for inserted in (states, shuffled):
        # what is learned depends on what came when: here nothing is
        order = OrderConfig(boost_decay_per_s=0.05, ageing_per_backlog=0.0)
        queue = PrefillQueue(policy, order)
        for state in inserted:
            queue.put(state)
        orders.append([state.serial for state in queue.ordered(now)])
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == list(range(len(states)))


@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 100)), min_size=1, max_size=40)
)
def test_guardc_makes_nobody_late_where_all_can_be_in_time(rows):
    """Whole prefills, one after the other; none is small beside another."""
    states = [
        state_of(serial, 0.0, float(work), deadline=float(deadline))
        for serial, (work, deadline) in enumerate(rows)
    ]
    done_at = 0.0
    for state in sorted(states, key=lambda one: one.due_at):
        done_at += state.remaining_s
        state.milestones.deadline_at = max(state.due_at, done_at)
    queue = PrefillQueue("guardc")
    for state in states:
        queue.put(state)
    clock = 0.0
    while len(queue):
        state = next(queue.ordered(clock))
        queue.remove(state)
        clock += state.remaining_s
        assert clock <= state.due_at


@pytest.mark.parametrize(
    "policy",
    ["dboost", *[pytest.param(name, marks=pytest.mark.slow) for name in OTHERS]],
)
def test_a_long_prefill_gets_through_a_flood_of_short_ones(policy):
    """More short work than the machine can do: whoever serves the shortest first never comes to the
    long one. It comes to its turn when newcomers go behind it; under aspf 123 s after it came, at
    the latest (the deadline and 60 * 2 s)."""
    shorts = [request_of(f"S{i}", 105, 1, at=i * 0.1) for i in range(4000)]
    requests = [request_of("L", 2_000, 1, at=1.0), *shorts]
    config = config_of(
        policy,
        tpot_s=0.05,
        max_chunk_tokens=256,
        max_batch_tokens=4096,
        order=OrderConfig(most_ageing_works=60.0),
    )
    grid = grid_of(pages=20_000, page=16, length=200_000)
    simulation = Simulation(config, grid, ExecutionModel.analytic(token_s=1e-3))
    logs = simulation.run(requests).requests
    assert logs["L"].ttft_s < 150
    shorts_ttft = sorted(log.ttft_s for name, log in logs.items() if name != "L")
    assert shorts_ttft[len(shorts) // 2] < 30
