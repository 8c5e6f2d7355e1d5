"""A load that suits the server, where the user has left lengths or the pace open."""

import math

import pytest

from loadgen.workload.options import PaceOptions, WorkloadOptions
from loadgen.workload.plan import build_plan
from loadgen.workload.suiting import LeftOpen, ServerFound, left_open, suit

SMALL = ServerFound(
    context=8192, prompt_tokens_per_s=1100.0, token_s=0.008
)  # on two cores
LARGE = ServerFound(
    context=131_072, prompt_tokens_per_s=20_000.0, token_s=0.01
)  # on a GPU
SLOW = ServerFound(context=512, overhead=40, prompt_tokens_per_s=20.0, token_s=0.5)


def flags_of(found, pace=None, **given):
    return suit(WorkloadOptions(**given), pace or PaceOptions(), found)[2]


def test_a_small_server_gets_small_requests():
    assert flags_of(SMALL) == {
        "--output-len": "32",
        "--input-len": "256",
        "--request-rate": "2",
        "--num-prompts": "120",
    }


def test_a_large_server_gets_larger_prompts():
    assert flags_of(LARGE) == {
        "--output-len": "32",
        "--input-len": "1024",
        "--request-rate": "2.6",
        "--num-prompts": "156",
    }


def test_a_slow_server_is_not_asked_for_more_than_it_can_do():
    flags = flags_of(SLOW)
    assert flags["--output-len"] == "8"
    assert flags["--input-len"] == "56"  # what the server adds, and some
    assert flags["--request-rate"] == "0.14"
    assert flags["--num-prompts"] == "20"


@pytest.mark.parametrize("found", [SMALL, LARGE, SLOW])
def test_on_average_one_request_is_under_way(found):
    workload, pace, _ = suit(WorkloadOptions(long_fraction=0.05), PaceOptions(), found)
    plan = build_plan(workload, pace)
    alone = [
        found.seconds(one.prompt_tokens, one.output_tokens) for one in plan.requests
    ]
    assert pace.request_rate is not None
    assert 0.5 <= pace.request_rate * sum(alone) / len(alone) <= 1.6
    assert plan.longest <= found.context


@pytest.mark.parametrize("context", [64, 100, 512, 4096])
def test_everything_fits_in_the_context(context):
    found = ServerFound(context=context, prompt_tokens_per_s=1e5, token_s=1e-4)
    workload, pace, _ = suit(WorkloadOptions(long_fraction=0.5), PaceOptions(), found)
    assert build_plan(workload, pace).longest <= context


def test_max_model_len_is_heeded():
    flags = flags_of(LARGE, max_model_len=200)
    assert flags["--input-len"] == "64"
    assert int(flags["--input-len"]) + int(flags["--output-len"]) <= 200


def test_long_prompts_nearly_fill_the_context_or_take_half_a_minute():
    assert flags_of(SMALL, long_fraction=0.05)["--long-input-len"] == "6160:7700"
    slower = ServerFound(context=8192, prompt_tokens_per_s=100.0, token_s=0.008)
    assert flags_of(slower, long_fraction=0.05)["--long-input-len"] == "2400:3000"


def test_what_is_given_stays():
    flags = flags_of(SMALL, input_len="8000:8100", num_prompts=7)
    assert flags == {"--output-len": "32"}
    workload, pace, flags = suit(
        WorkloadOptions(output_len="2000"), PaceOptions(request_rate=3.0), SMALL
    )
    assert flags == {"--input-len": "256"}
    assert (workload.output_len, pace.request_rate) == ("2000", 3.0)


def test_answers_take_the_room_that_given_prompts_leave():
    assert flags_of(SMALL, input_len="8180", num_prompts=7)["--output-len"] == "12"
    given = {
        "long_fraction": 0.1,
        "long_input_len": "8182",
        "input_len": "10",
        "num_prompts": 7,
    }
    assert flags_of(SMALL, **given)["--output-len"] == "10"


def test_a_duration_gives_the_number_of_requests():
    workload, pace, flags = suit(WorkloadOptions(duration=5.0), PaceOptions(), SMALL)
    assert "--num-prompts" not in flags
    plan = build_plan(workload, pace)
    assert max(request.at or 0.0 for request in plan.requests) <= 5.0
    assert len(plan.requests) < 30


@pytest.mark.parametrize(
    ("given", "pace", "expected"),
    [
        ({}, {}, LeftOpen(prompts=True, answers=True, pace=True)),
        (
            {"dataset_name": "random"},
            {},
            LeftOpen(prompts=True, answers=True, pace=True),
        ),
        ({"num_prompts": 5}, {}, LeftOpen(prompts=True, answers=True)),
        ({}, {"request_rate": math.inf}, LeftOpen(prompts=True, answers=True)),
        ({}, {"max_concurrency": 4}, LeftOpen(prompts=True, answers=True)),
        ({"input_len": "5", "output_len": "5"}, {}, LeftOpen(pace=True)),
        ({"workload": "convoy"}, {}, LeftOpen(pace=True)),
        ({"dataset_path": "sample:azure"}, {}, LeftOpen()),
        ({"sessions": ("chat",)}, {}, LeftOpen()),
        (
            {
                "long_fraction": 0.1,
                "input_len": "5",
                "num_prompts": 9,
                "output_len": "5",
            },
            {},
            LeftOpen(long_prompts=True),
        ),
    ],
)
def test_what_is_left_open(given, pace, expected):
    assert left_open(WorkloadOptions(**given), PaceOptions(**pace)) == expected
