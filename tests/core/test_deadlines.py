"""Deadlines that a request gets which asks for nothing: what they are made of, and what they are
not."""

import msgspec
import pytest
from core_inputs import config_of, grid_of, request_of
from hypothesis import given
from hypothesis import strategies as st

from medha_actors.core.pace import MOST_DRAG, Pace
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.scheduler import Scheduler
from medha_actors.core.simulator import Simulation
from medha_actors.messages import Accepted


def scheduler_of(policy="dspf", stages=2, **objectives):
    """1 ms a token; a batch may take 0.2 s / (stages + 1)."""
    config = config_of(policy, objectives=objectives)
    model = ExecutionModel.analytic(stages, token_s=1e-3)
    grid = grid_of(stages=stages, pages=20_000, length=40_000)
    return Scheduler(config.scheduler, config.objectives, None, grid, model)


def objective_s(scheduler, name="r", tokens=1000, now=0.0, at=0.0, way_s=0.0, **asked):
    """What a request has until its deadline."""
    request = msgspec.structs.replace(
        request_of(name, tokens, at=at, **asked), way_s=way_s
    )
    answer = scheduler.add(request, now)
    assert isinstance(answer, Accepted)
    return answer.ttft_objective_s


def test_an_idle_server_gives_1_5_times_the_idle_path_and_the_batches_on_their_way():
    scheduler = scheduler_of()
    work_s = scheduler.table.seconds(0, 1000)
    grace_s = 2 * 1.5 * scheduler.budget_s  # of a lone prefill's batches, in two stages
    assert grace_s == pytest.approx(0.2)
    assert objective_s(scheduler, "plain") == pytest.approx(1.5 * work_s + grace_s)
    # 30 ms on the way in, 20 ms on the way out
    path_s = objective_s(scheduler, "far", now=0.03, way_s=0.02)
    assert path_s == pytest.approx(1.5 * (work_s + 0.05) + grace_s)
    tiny_s = objective_s(scheduler, "tiny", tokens=2)
    assert tiny_s == pytest.approx(0.05 + grace_s)
    # a way that takes longer than the work is a fault, and is not forgiven
    lost_s = objective_s(scheduler, "lost", tokens=100, now=60.0)
    assert lost_s < 1.5 * 3 * scheduler.table.seconds(0, 100) + grace_s


def test_what_a_client_asks_for_is_its_deadline():
    assert objective_s(
        scheduler_of(), ttft_s=0.7, now=0.03, way_s=0.02
    ) == pytest.approx(0.7)


def test_the_drag_is_learned_slowly_and_within_bounds():
    pace = Pace()
    assert pace.steady_drag == 1.0
    for _ in range(20):
        pace.dispatched(0.05, 0.1)
    assert pace.steady_drag < pace.drag()
    for _ in range(5000):
        pace.dispatched(0.05, 0.08)
    assert pace.steady_drag == pytest.approx(1.6, rel=0.01)
    for _ in range(5000):
        pace.dispatched(0.05, 0.5)
    assert pace.steady_drag == MOST_DRAG
    for _ in range(10_000):
        pace.dispatched(0.05, 0.02)  # groups work side by side
    assert pace.steady_drag == 1.0


@given(
    st.lists(st.integers(1, 3000), max_size=20),
    st.sampled_from(["dspf", "dboost", "lars"]),
)
def test_a_deadline_does_not_follow_what_is_waiting(queue, policy):
    """Nor what is announced: an order that heeds it would chase itself."""
    busy = scheduler_of(policy)
    for number, tokens in enumerate(queue):
        busy.add(request_of(f"before{number}", tokens), 0.0)
    assert objective_s(busy) == objective_s(scheduler_of(policy))


def test_slack_counts_what_the_load_and_the_batches_on_their_way_take():
    scheduler = scheduler_of()
    scheduler.add(request_of("r", 1000), 0.0)
    state = scheduler.live.by_id["r"]
    work_s = state.total_work_s
    assert state.slack(0.0) == pytest.approx(0.5 * work_s)
    assert state.relative_slack(0.0) == pytest.approx(0.5)
    state.drag = 1.6
    state.milestones.deadline_at = 1.5 * 1.6 * work_s + state.grace_s
    assert state.slack(0.0) == pytest.approx(0.5 * 1.6 * work_s)
    assert state.relative_slack(0.0) == pytest.approx(0.5)
    state.remaining_s = work_s / 2
    assert state.slack(1.6 * work_s / 2) == pytest.approx(0.5 * 1.6 * work_s)


@pytest.mark.parametrize("policy", ["dspf", "dboost"])
def test_a_short_one_beside_a_long_one_is_in_time(policy):
    """A batch with a chunk of the long one is on its way in every stage, wherever in it a short one
    comes."""
    shorts = [request_of(f"S{i}", 40, 2, at=1.0 + 0.737 * i) for i in range(12)]
    config = config_of(policy)
    grid = grid_of(stages=2, pages=20_000, length=40_000)
    simulation = Simulation(
        config, grid, ExecutionModel.analytic(2, token_s=1e-3, step_s=2e-3)
    )
    logs = simulation.run([request_of("L", 12_000, 2), *shorts]).requests
    for log in logs.values():
        assert log.ttft_s <= log.answer.ttft_objective_s, log.request.id
