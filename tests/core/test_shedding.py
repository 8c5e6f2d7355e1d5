"""Overload is shed: who cannot be in time is told at once, and when to come back."""

import itertools
import math
import re

import pytest
from core_inputs import config_of, grid_of, request_of
from hypothesis import given
from hypothesis import strategies as st

from medha_actors.core.appointments import Appointments
from medha_actors.core.pace import CAREFUL_DRAG, Pace
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.scheduler import Scheduler
from medha_actors.core.simulator import Simulation
from medha_actors.messages import Accepted, Rejected, Request, Resumed
from medha_actors.tuning import AdmissionConfig


def scheduler_of(late="shed", policy="spf", **admission):
    config = config_of(policy, admission=AdmissionConfig(late=late, **admission))
    model = ExecutionModel.analytic(2, token_s=1e-3, step_s=2e-3)
    grid = grid_of(stages=2, pages=8192, length=32_000)
    return Scheduler(config.scheduler, config.objectives, None, grid, model)


def asking(name, late=None, prompt=100, **more) -> Request:
    request = request_of(name, prompt, **more)
    objectives = request.objectives
    return type(request)(
        **{field: getattr(request, field) for field in request.__struct_fields__}
        | {"objectives": type(objectives)(ttft_s=objectives.ttft_s, late=late)}
    )


def fill(scheduler, count, now=0.0, **more):
    """So many answers to requests that come at once."""
    return [scheduler.add(asking(f"r{i}", at=now, **more), now) for i in range(count)]


def test_who_cannot_be_in_time_is_refused_with_the_time_until_such_a_request_would_be():
    answers = fill(scheduler_of(), 60, ttft_s=1.0)
    taken = list(
        itertools.takewhile(lambda answer: isinstance(answer, Accepted), answers)
    )
    assert 5 < len(taken) < 30
    assert all(answer.predicted_ttft_s <= 1.0 for answer in taken)
    refused = answers[len(taken) :]
    assert all(isinstance(answer, Rejected) for answer in refused)
    assert {(answer.status, answer.code) for answer in refused} == {(429, "late")}
    retries = [answer.retry_after_s for answer in refused]
    assert retries == sorted(retries)  # each its own appointment, one behind the other
    assert 0.1 < retries[0] < 0.6
    for answer in refused:
        told = re.search(r"would come in ([\d.]+) s", answer.message)
        assert told is not None
        assert (float(told[1]) > 1.0) == ("later than the 1 s" in answer.message)
        assert (float(told[1]) <= 1.0) == ("too close to the 1 s" in answer.message)


def test_until_the_drag_is_known_less_is_taken_than_is_announced_in_time():
    """The others are told when to come back: what a new server took too much of in its first second
    made those late who did."""
    pace = Pace()
    assert pace.drag() == 1.0
    assert pace.care == CAREFUL_DRAG
    for _ in range(300):
        pace.dispatched(0.1, 0.12)
    assert pace.care == pytest.approx(1.0, abs=0.01)
    taken = [a for a in fill(scheduler_of(), 60, ttft_s=1.0) if isinstance(a, Accepted)]
    assert max(answer.predicted_ttft_s for answer in taken) < 1.0 / CAREFUL_DRAG


def test_without_an_objective_the_class_of_a_request_stands_for_it():
    scheduler = scheduler_of(patience_s=0.2, patience_works=5.0)
    answers = fill(scheduler, 60)
    taken = [answer for answer in answers if isinstance(answer, Accepted)]
    assert 0.3 < max(answer.predicted_ttft_s for answer in taken) <= 0.2 + 5.0 * 0.11


def test_by_default_nobody_is_refused():
    answers = fill(scheduler_of("accept"), 60, ttft_s=0.2)
    assert all(isinstance(answer, Accepted) for answer in answers)


def test_a_client_says_what_is_done_when_it_is_late():
    scheduler = scheduler_of("accept")
    fill(scheduler, 60)
    assert isinstance(scheduler.add(asking("a", "shed", ttft_s=0.2), 0.0), Rejected)
    assert isinstance(scheduler.add(asking("b", "accept", ttft_s=0.2), 0.0), Accepted)
    shedding = scheduler_of("shed")
    fill(shedding, 60, ttft_s=1.0)
    queued = shedding.add(asking("c", "queue", ttft_s=0.2), 0.0)
    assert isinstance(queued, Accepted)
    assert queued.ttft_objective_s > 0.5  # what it was told, not what it had asked for
    assert queued.predicted_ttft_s >= queued.ttft_objective_s * 0.99


def test_a_document_is_queued_not_refused():
    scheduler = scheduler_of(document_s=2.0)
    fill(scheduler, 60, ttft_s=2.0)
    for index in range(4):
        assert isinstance(
            scheduler.add(asking(f"d{index}", prompt=6000), 0.0), Accepted
        )


def test_what_was_queued_behind_goes_after_those_who_can_be_in_time():
    scheduler = scheduler_of(policy="dspf")
    fill(scheduler, 60, ttft_s=0.3)
    for index in range(4):
        scheduler.add(asking(f"more{index}", "accept", ttft_s=0.3), 0.0)
    scheduler.add(asking("late", "queue", ttft_s=0.3), 0.0)
    scheduler.add(asking("own", "accept", ttft_s=0.3), 0.0)
    order = [state.id for state in scheduler.live.queue.ordered(0.0)]
    assert order.index("own") < order.index("late")


def test_a_resumed_request_is_never_refused():
    scheduler = scheduler_of()
    fill(scheduler, 60, ttft_s=1.0)
    known = Resumed(token_ids=bytes(4), first_token_at=0.0)
    request = asking("again", "shed", ttft_s=0.2)
    fields = {field: getattr(request, field) for field in request.__struct_fields__}
    assert isinstance(
        scheduler.add(Request(**fields | {"resumed": known}), 0.0), Accepted
    )


def test_an_appointment_is_kept_once_in_its_time():
    book = Appointments()
    assert book.kept(7, 0.0) == math.inf
    assert book.book(7, 0.1, 0.1, 10.0, 0.0) == 10.0
    assert book.kept(7, 5.0) == pytest.approx(
        4.0
    )  # a tenth of the wait too early is no matter
    assert book.ahead_s(0.1, 5.0) == pytest.approx(0.1)
    assert book.ahead_s(0.01, 5.0) == 0.0  # it goes before what is longer
    assert book.kept(7, 9.5) == 0.0
    assert book.kept(7, 9.5) == math.inf
    assert book.ahead_s(0.1, 9.5) == 0.0


def test_who_does_not_come_costs_less_and_less():
    book = Appointments()
    for key in range(200):
        book.book(key, 0.1, 0.1, 1.0, float(key))
    assert book.kept(-1, 300.0) == math.inf
    assert len(book) == 0
    assert book.shown < 0.02
    book.book(0, 0.1, 0.1, 1.0, 300.0)
    assert book.ahead_s(0.1, 300.0) < 0.002


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.floats(0.001, 100), st.floats(0, 30)),
        max_size=60,
    )
)
def test_the_book_adds_up_whatever_happens(steps):
    book = Appointments()
    now = 0.0
    for key, load_s, seconds in steps:
        now += seconds
        if book.kept(key, now) == math.inf:
            book.book(key, load_s, load_s, seconds, now)
        assert 0.0 <= book.shown <= 1.0
        assert book.ahead_s(1e6, now) >= book.ahead_s(load_s, now) >= 0.0
    book.kept(-1, now + 1e6)
    assert len(book) == 0
    assert book.ahead_s(1e6, now + 1e6) == 0.0


@pytest.mark.parametrize("late", ["shed", "accept"])
def test_one_more_must_not_make_the_tokens_of_those_who_run_late(late):
    config = config_of(
        "spf", tpot_s=0.03, admission=AdmissionConfig(late=late, patience_s=10.0)
    )
    model = ExecutionModel.analytic(2, token_s=1e-3, step_s=2e-3)
    simulation = Simulation(config, grid_of(stages=2, pages=8192, length=32_000), model)
    requests = [request_of(f"r{i}", 4, 200, 0.015 * i) for i in range(64)]
    logs = simulation.run(requests).requests.values()
    taken = [log for log in logs if isinstance(log.answer, Accepted)]
    gaps = []
    for log in taken:
        pairs = itertools.pairwise(log.token_times)
        gaps += [after - before for before, after in pairs]
    gaps.sort()
    refused = [log.answer for log in logs if isinstance(log.answer, Rejected)]
    if late == "shed":
        assert gaps[len(gaps) * 99 // 100] <= 0.03
        assert refused
        assert all(answer.retry_after_s >= 0.1 for answer in refused)
        assert "tokens of those that run" in refused[0].message
    else:
        assert gaps[len(gaps) * 99 // 100] > 0.03
        assert not refused
