"""What is announced: the sum that the order, the pipeline and the expected newcomers make."""

import itertools

import pytest
from core_inputs import config_of, grid_of, request_of
from core_world import World
from hypothesis import example, given
from hypothesis import strategies as st

from medha_actors.core.forecast import FOLLOWERS, solve
from medha_actors.core.pace import FEWEST, FORECASTS, FREE, WAITING, Pace
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.request import Milestones, RequestState
from medha_actors.core.scheduler import Scheduler
from medha_actors.core.simulator import Simulation
from medha_actors.messages import Accepted

MODEL = {"token_s": 1e-3, "step_s": 2e-3, "pair_s": 1e-6, "kv_s": 1e-6}


def scheduler_of(policy, stages=2):
    config = config_of(policy)
    grid = grid_of(stages=stages, pages=4096, length=16_000)
    model = ExecutionModel.analytic(stages, **MODEL)
    return Scheduler(config.scheduler, config.objectives, None, grid, model)


def announced(scheduler, name, prompt, now=0.0, **more):
    answer = scheduler.add(request_of(name, prompt, 1, now, **more), now)
    assert isinstance(answer, Accepted)
    return answer.predicted_ttft_s


@pytest.mark.parametrize("policy", ["spf", "dspf", "dboost", "lars"])
def test_a_short_prompt_is_not_announced_behind_long_ones_that_it_overtakes(policy):
    alone_s = announced(scheduler_of(policy), "a", 20)
    scheduler = scheduler_of(policy)
    for index in range(3):
        announced(scheduler, f"long{index}", 6000)
    assert announced(scheduler, "a", 20) < alone_s + 0.4
    assert announced(scheduler, "last", 6000) > 3 * 6


def test_in_order_of_arrival_all_that_is_there_goes_before():
    scheduler = scheduler_of("fcfs_chunked")
    for index in range(3):
        announced(scheduler, f"long{index}", 2000)
    assert announced(scheduler, "a", 20) > 3 * 1.5


@given(
    prompts=st.lists(st.integers(1, 4000), min_size=1, max_size=FOLLOWERS - 1),
    more=st.integers(1, 4000),
    own=st.integers(1, 4000),
    policy=st.sampled_from(["spf", "dspf", "edf", "fcfs_chunked", "preflow", "dboost"]),
)
@example(prompts=[100, 100, 100], more=20, own=20, policy="spf")
@example(prompts=[3, 25, 25, 3, 3, 3, 3, 3], more=4, own=1, policy="spf")
@example(
    prompts=[4, 4, 2482, 2482, 2482, 2482, 2482, 4], more=2878, own=2878, policy="dspf"
)
def test_nobody_is_sooner_because_more_are_waiting(prompts, more, own, policy):
    """Where as many have come: who comes how often is learned from those who have gone, too. A
    prompt that finds nobody waiting is cut for the pipeline; and the equation is solved to within
    a few percent."""
    fewer = scheduler_of(policy)
    others = scheduler_of(policy)
    for scheduler in (fewer, others):
        for index, prompt in enumerate(prompts):
            announced(scheduler, f"r{index}", prompt)
        announced(scheduler, "more", more)
    fewer.cancel("more", 0.0)
    assert announced(others, "own", own) >= 0.95 * announced(fewer, "own", own)


@pytest.mark.parametrize(
    "prompts", [[100, 100, 100, 20], [100, 100, 100, 20, 20], [300, 300, 20]]
)
def test_those_behind_a_short_prompt_fill_its_batch(prompts):
    requests = [
        request_of(f"r{index}", prompt, 1) for index, prompt in enumerate(prompts)
    ]
    grid = grid_of(stages=2, pages=4096, length=16_000)
    model = ExecutionModel.analytic(2, **MODEL)
    logs = Simulation(config_of("spf"), grid, model).run(requests).requests
    last = logs[f"r{len(prompts) - 1}"]
    forecast_s = last.answer.predicted_ttft_s / Pace().truth(WAITING)
    assert last.ttft_s == pytest.approx(forecast_s, rel=0.1)


@given(
    first=st.floats(0, 10),
    growth=st.floats(0, 0.9),
    until=st.floats(0, 100),
)
def test_the_wait_is_the_smallest_that_covers_what_comes_meanwhile(
    first, growth, until
):
    def due(wait_s):
        return first + growth * min(wait_s, until)

    wait_s = solve(due, 0.0)
    exact = first / (1 - growth)
    exact = exact if exact <= until else first + growth * until
    assert exact * 0.97 - 1e-3 <= wait_s <= exact * 1.05 + 1e-3


@given(first=st.floats(0.1, 10), fall=st.floats(0, 5), width=st.floats(0.1, 5))
def test_what_is_due_may_fall_with_the_wait(first, fall, width):
    """Under lars a short prefill stands behind a long one only until it is as urgent."""

    def due(wait_s):
        return first + fall * max(0.0, 1 - wait_s / width)

    wait_s = solve(due, 0.0)
    exact = (first + fall) / (1 + fall / width)
    exact = exact if exact <= width else first
    assert exact * 0.97 - 1e-3 <= wait_s <= exact * 1.05 + 1e-3


def test_what_grows_without_end_is_never():
    assert solve(lambda wait_s: 1.0 + 1.1 * wait_s, 0.0) == 86_400.0


def coming(load_s, at):
    request = request_of("r", 10, 1, at)
    milestones = Milestones(at, at + 2 * load_s)
    return RequestState(request, 0, milestones, 0.1, 1e9, 10, 10, load_s=load_s)


def due_in(state):
    return state.due_at - state.milestones.arrived_at, 1.0


def test_newcomers_are_counted_by_their_work_once_there_are_enough():
    pace = Pace()
    for index in range(FEWEST - 1):
        pace.arrived(coming(0.1, index * 0.5), index * 0.5)
    assert pace.newcomers(4.0, due_in) == []
    pace.arrived(coming(8.0, 4.0), 4.0)
    short, long = sorted(
        pace.newcomers(4.0, due_in), key=lambda newcomer: newcomer.load_s
    )
    assert short[:4] == pytest.approx((7 / 5.0, 0.1, 0.2, 1.0))
    assert long[:4] == pytest.approx((1 / 5.0, 8.0, 16.0, 1.0))


def test_old_arrivals_are_forgotten():
    pace = Pace()
    for index in range(400):
        pace.arrived(coming(0.1 if index < 200 else 5.0, index), index)
    [newcomer] = pace.newcomers(400.0, due_in)
    assert newcomer.load_s == pytest.approx(5.0)
    assert newcomer.per_s == pytest.approx(1.0, rel=0.02)


def test_forecasts_are_corrected_by_what_came_of_the_last_ones():
    pace = Pace()
    for _ in range(FORECASTS[WAITING]):
        pace.came_true(WAITING, 1.0, 1.5)
    assert pace.truth(WAITING) >= 1.5 / 1.25
    assert pace.truth(FREE) < 1.1  # another kind
    for _ in range(FORECASTS[WAITING]):
        pace.came_true(WAITING, 1.0, 50.0)
    assert pace.truth(WAITING) < 1.5  # an outlier of the machine is not believed


@pytest.mark.parametrize("at", [0.01, 0.03, 0.05, 0.07, 0.09])
@pytest.mark.parametrize("own", [5, 20, 60])
def test_what_is_on_its_way_is_before_a_prefill_that_finds_nobody_waiting(at, own):
    """It passes the last stage behind the chunks of a longer prompt, which are all on their way:
    that took up to seven times as long as was announced."""
    grid = grid_of(stages=2, pages=4096, length=16_000)
    model = ExecutionModel.analytic(2, **MODEL)
    requests = [request_of("before", 95, 1, 0.0), request_of("own", own, 1, at)]
    log = Simulation(config_of("dboost"), grid, model).run(requests).requests["own"]
    announced_s = log.answer.predicted_ttft_s
    assert log.ttft_s == pytest.approx(announced_s, rel=0.1, abs=1.2e-3)


def test_room_comes_as_often_as_requests_have_ended():
    pace = Pace()
    assert pace.room_in_s(3, 0.0) == 0.0
    for index in range(11):
        pace.departed(index * 0.5)
    assert pace.room_in_s(4, 5.5) == pytest.approx(2.0)
    assert pace.room_in_s(0, 5.5) == 0.0


@pytest.mark.parametrize(
    ("policy", "share"), [("spf", 0.9), ("lars", 0.8), ("dboost", 0.9)]
)
def test_what_is_announced_comes_true(policy, share):
    """Short prompts and now and then a long one, at two thirds of what the stages can do."""
    config = config_of(policy, tpot_s=0.15)
    grid = grid_of(stages=2, pages=4096, length=16_000)
    model = ExecutionModel.analytic(2, **MODEL)
    simulation = Simulation(config, grid, model, noise=0.03)
    lengths = itertools.cycle([20, 60, 100, 35, 150, 80, 15, 50, 110, 1500])
    requests = [
        request_of(
            f"r{index}", next(lengths), 16, 0.37 * index + 0.05 * (index * 7 % 5)
        )
        for index in range(150)
    ]
    logs = simulation.run(requests).requests.values()
    ratios = [log.ttft_s / log.answer.predicted_ttft_s for log in logs]
    assert sum(0.8 <= ratio <= 1.25 for ratio in ratios) >= share * len(ratios)
    assert sum(ratio > 1.25 for ratio in ratios) <= 0.05 * len(ratios)


def test_the_way_to_the_client_is_part_of_the_announcement():
    request = request_of("a", 20, 1)
    fields = {name: getattr(request, name) for name in request.__struct_fields__}
    near = scheduler_of("spf").add(request, 0.0)
    far = scheduler_of("spf").add(type(request)(**fields | {"way_s": 0.05}), 0.0)
    assert far.predicted_ttft_s == pytest.approx(near.predicted_ttft_s + 0.05)


def test_a_restart_is_no_drag():
    """Nobody waited for batches while the stages were gone."""
    world = World(config_of("spf"), grid_of(stages=2, pages=4096, length=16_000))
    for name in ("a", "b"):
        world.add(request_of(name, 4000, 1, world.now))
    world.launch()
    world.restart()
    world.now += 1000.0
    world.drain()
    answer = world.add(request_of("c", 2000, 1, world.now))
    assert answer.predicted_ttft_s < 4.0
    world.add(request_of("d", 2000, 1, world.now))
    assert world.add(request_of("e", 2000, 1, world.now)).predicted_ttft_s < 12.0
    world.drain()
