"""The simulated grid on cases that can be solved by hand."""

import random
import time

import pytest
from core_inputs import config_of, grid_of, request_of

from medha_actors.core.decision_cost import decision_seconds
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.simulator import Simulation
from medha_actors.messages import Accepted


def simulate(
    requests,
    stages=1,
    groups=1,
    model=None,
    tpot_s=0.2,
    cutoff=None,
    policy="lars",
    scheduler=None,
    **more,
):
    grid = grid_of(stages, groups, pages=20_000, page=16, cutoff=cutoff, length=200_000)
    model = model or ExecutionModel.analytic(stages, token_s=1e-3)
    return Simulation(
        config_of(policy, tpot_s=tpot_s, **(scheduler or {})), grid, model, **more
    ).run(requests)


def test_one_request_on_one_stage():
    result = simulate([request_of("a", 1000, 5, at=10.0)])
    log = result.requests["a"]
    assert isinstance(log.answer, Accepted)
    assert log.ttft_s == pytest.approx(1.0)
    assert log.token_times == pytest.approx([11.0, 11.001, 11.002, 11.003, 11.004])
    assert log.finished.reason == "length"
    assert result.busy == pytest.approx([1.0])


def test_stages_work_on_one_prompt_at_once():
    """Equal chunks, nearly the smallest there are, since none costs more a token: makespan =
    (chunks + stages - 1) * chunk time."""
    whole = simulate([request_of("a", 6400, 1)], stages=1).requests["a"].ttft_s
    for stages in (2, 4, 8):
        result = simulate(
            [request_of("a", 6400, 1)],
            stages=stages,
            scheduler={"max_chunk_tokens": 128},
            tpot_s=10.0,
        )
        best_s = (200 + stages - 1) * 0.032 / stages
        assert best_s <= result.requests["a"].ttft_s + 1e-9 <= 1.02 * best_s
        assert result.requests["a"].ttft_s < whole / stages / 0.8
        assert min(result.busy) > 0.85


def test_groups_halve_the_decode_over_a_long_context():
    model = ExecutionModel.analytic(1, token_s=1e-4, kv_s=1e-6)

    def gap(groups):
        result = simulate(
            [request_of("a", 20_000, 20)], groups=groups, cutoff=10_000, model=model
        )
        times = result.requests["a"].token_times
        return times[-1] - times[-2]

    assert gap(1) == pytest.approx(1e-4 + 20_018e-6)
    assert gap(2) == pytest.approx(1e-4 + 10_018e-6)


def test_a_queue_with_constant_service_times():
    """M/D/1 at load 0.6: mean wait = rho / (2 (1 - rho)) services (Pollaczek-Khinchine); one prompt
    at a time."""
    rng = random.Random(1)
    at = 0.0
    requests = []
    for index in range(20_000):
        at += rng.expovariate(6.0)
        requests.append(request_of(f"r{index}", 100, 1, at=at))
    result = simulate(
        requests,
        policy="fcfs",
        tpot_s=0.2,
        scheduler={"max_batch_tokens": 100, "max_chunk_tokens": 100},
    )
    waits = [log.ttft_s - 0.1 for log in result.requests.values()]
    assert sum(waits) / len(waits) == pytest.approx(0.1 * 0.6 / (2 * 0.4), rel=0.06)
    assert result.busy[0] == pytest.approx(0.6, rel=0.03)


def test_a_seed_decides_everything():
    requests = [
        request_of(f"r{index}", 50 + 30 * index, 5, at=index * 0.05)
        for index in range(30)
    ]

    def times(seed):
        result = simulate(requests, stages=2, noise=0.2, seed=seed)
        return [log.token_times for log in result.requests.values()]

    assert times(1) == times(1)
    assert times(1) != times(2)


def test_the_scheduler_learns_that_reality_is_slower():
    reality = ExecutionModel.analytic(token_s=2e-3)
    grid = grid_of(pages=20_000, page=16, length=200_000)
    simulation = Simulation(
        config_of(tpot_s=0.2),
        grid,
        ExecutionModel.analytic(token_s=1e-3),
        reality=reality,
    )
    requests = [
        request_of(f"r{index}", 2000, 20, at=index * 3.0) for index in range(30)
    ]
    simulation.run(requests)
    stats = simulation.scheduler.stats()
    assert stats.predictor_scale_prefill == pytest.approx(2.0)
    assert stats.predictor_scale_decode == pytest.approx(2.0)
    assert stats.predictor_error_p50 < 0.01
    assert stats.worked_s == pytest.approx(
        [2 * seconds for seconds in stats.calibrated_s]
    )
    assert min(stats.worked_s) > 0


@pytest.mark.parametrize("waiting", [0, 200])
def test_the_decision_benchmark_runs(waiting):
    seconds = decision_seconds(time.perf_counter, waiting, decisions=5, groups=2)
    assert len(seconds) == 5
    assert min(seconds) > 0
