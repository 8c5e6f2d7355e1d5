"""Mixes of short and long requests, and the plans made of options."""

import itertools

import pytest

from loadgen.errors import LoadgenError
from loadgen.records import PROBE
from loadgen.workload.mixes import PRESETS, Mix, probes, synthetic, until, within
from tests.loadgen.made import plan_of


def test_more_long_requests_leave_the_others_as_they_were():
    few = synthetic(Mix(input_len="10:500", long_fraction=0.02), 2000, 5)
    many = synthetic(Mix(input_len="10:500", long_fraction=0.10), 2000, 5)
    for before, after in zip(few, many, strict=True):
        assert before == after or (before.kind == "short" and after.kind == "long")
    assert sum(request.kind == "long" for request in many) == pytest.approx(200, abs=40)
    assert all(
        6000 <= request.prompt_tokens <= 7500
        for request in many
        if request.kind == "long"
    )


def test_same_seed_same_requests():
    assert synthetic(PRESETS["convoy"], 50, 1) == synthetic(PRESETS["convoy"], 50, 1)
    assert synthetic(PRESETS["convoy"], 50, 1) != synthetic(PRESETS["convoy"], 50, 2)


def test_the_papers_mix_scaled_to_a_small_machine():
    requests = synthetic(PRESETS["paper"], 20_000, 0, scale=(1 / 64, 1 / 8))
    long = sorted(
        request.prompt_tokens for request in requests if request.kind == "long"
    )
    assert len(long) == pytest.approx(1000, rel=0.15)
    assert long[0] >= 128_000 / 64
    assert long[-1] <= 1_048_576 / 64
    assert all(
        request.prompt_tokens >= 1 and request.output_tokens >= 1
        for request in requests
    )


def test_probes_come_at_even_intervals():
    sent = list(itertools.islice(probes(2.0, 32, 0), 3))
    assert [request.at for request in sent] == [0.5, 1.0, 1.5]
    assert {
        (request.kind, request.output_tokens, request.prompt_tokens) for request in sent
    } == {(PROBE, 1, 32)}


def test_cutting_by_length_and_time():
    requests = plan_of(
        num_prompts=100, request_rate=10, long_fraction=0.5, input_len="10"
    ).requests
    kept, dropped = within(requests, 200)
    assert len(kept) + dropped == 100
    assert {request.kind for request in kept} == {"short"}
    assert all(request.at <= 3 for request in until(requests, 3))
    with pytest.raises(LoadgenError, match="no request fits"):
        within(requests, 5)


def test_a_duration_sets_the_number_of_requests():
    plan = plan_of(duration=50, request_rate=20)
    assert len(plan.requests) == pytest.approx(1000, rel=0.15)
    assert plan.requests[-1].at <= 50 < plan.requests[-1].at + 2


def test_concurrency_without_a_rate_is_a_closed_loop():
    plan = plan_of(num_prompts=10, max_concurrency=4)
    assert plan.closed_loop
    assert all(request.at is None for request in plan.requests)
    assert not plan_of(num_prompts=10, max_concurrency=4, request_rate=2).closed_loop
    everything = plan_of(num_prompts=10)
    assert [request.at for request in everything.requests] == [0.0] * 10


def test_plan_says_what_it_is():
    assert (
        "10 requests (0 long), prompts of 64 to 64 tokens (640 in all)"
        in plan_of(num_prompts=10, input_len="64", request_rate=1).describe()
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_prompts": 0}, "--num-prompts"),
        ({"max_concurrency": 0}, "--max-concurrency"),
        ({"long_fraction": 1.5}, "--long-fraction"),
        ({"scale_lengths": "x"}, "--scale-lengths"),
        ({"scale_lengths": "1:2:3"}, "--scale-lengths"),
        ({"duration": -1}, "--duration"),
        ({"duration": 5, "max_concurrency": 2}, "closed loop"),
        ({"dataset_name": "azure"}, "--dataset-path"),
        ({"workload": "other"}, "--workload"),
        ({"duration": 1e9, "request_rate": 1e9}, "too many"),
    ],
)
def test_senseless_options_are_refused(given, message):
    with pytest.raises(LoadgenError, match=message):
        plan_of(**given)
