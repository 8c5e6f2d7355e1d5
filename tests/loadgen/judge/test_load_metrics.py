"""Metrics on records made by hand, against numbers worked out by hand."""

import pytest

from loadgen.errors import LoadgenError
from loadgen.judge.metrics import (
    classes_of,
    distribution,
    errors_of,
    load_of,
    measure,
    summarise,
)
from loadgen.judge.objectives import (
    Bound,
    Objectives,
    deadlines,
    objective_headers,
    parse_objectives,
)
from tests.loadgen.made import failed, made

NONE = Objectives()


def test_the_figures_of_one_request():
    found = measure(made(sent=5.0, tokens=(1.0, 1.1, 1.3), isolated_ttft_s=0.5), NONE)
    assert found.ttft == pytest.approx(1.0)
    assert list(found.itl) == pytest.approx([0.1, 0.2])
    assert found.tpot == pytest.approx(0.15)
    assert found.e2el == pytest.approx(1.3)
    assert found.normalized_ttft == pytest.approx(2.0)
    assert found.good is None
    assert found.fluidity is None


def test_tpot_uses_the_servers_count_when_events_carry_several_tokens():
    found = measure(made(tokens=(1.0, 2.0), usage_completion_tokens=5), NONE)
    assert found.tpot == pytest.approx(0.25)
    assert list(found.itl) == pytest.approx([1.0])
    without = measure(made(tokens=(1.0, 2.0), usage_completion_tokens=None), NONE)
    assert without.tpot == pytest.approx(1.0)


def test_undefined_is_absent():
    one = measure(made(tokens=(1.0,)), NONE)
    assert (one.tpot, one.normalized_ttft, list(one.itl)) == (None, None, [])
    broken = measure(failed(), NONE)
    assert (broken.ttft, broken.e2el) == (None, None)
    assert distribution([one, broken], "tpot", [50]) is None
    figures = summarise([one], 2.0, [50], goodput=False)
    assert {
        "tpot",
        "itl",
        "normalized_ttft",
        "fluidity_index",
        "request_goodput",
    }.isdisjoint(figures)
    assert (
        summarise([measure(failed(), NONE)], 0.0, [50], goodput=False)
        .keys()
        .isdisjoint({"ttft", "request_throughput"})
    )


def test_latency_counts_from_sending_and_lateness_is_kept_apart():
    found = measure(made(sent=5.0, released_at=4.8, scheduled_at=3.0), NONE)
    assert found.ttft == pytest.approx(1.0)
    assert found.lateness == pytest.approx(0.2)


def test_percentiles_and_totals():
    requests = [
        measure(made(i, sent=i, tokens=(0.1 * (i + 1), 0.1 * (i + 1) + 0.05)), NONE)
        for i in range(10)
    ]
    figures = summarise(requests, 20.0, [50, 90, 99], goodput=False)
    assert figures["ttft"]["p50"] == pytest.approx(550)
    # linear between the 9th and the 10th of ten
    assert figures["ttft"]["p90"] == pytest.approx(910)
    assert figures["ttft"]["p99"] == pytest.approx(991)
    assert figures["ttft"]["mean"] == pytest.approx(550)
    assert figures["itl"]["max"] == pytest.approx(50)
    assert (figures["request_throughput"], figures["output_throughput"]) == (0.5, 1.0)
    assert figures["total_token_throughput"] == pytest.approx((100 + 20) / 20)


def test_failed_requests_count_against_goodput_and_cancelled_ones_do_not():
    objectives = parse_objectives(["ttft:1500", "tpot:200"])
    requests = [
        measure(made(0, tokens=(1.0, 1.1)), objectives),
        measure(made(1, tokens=(1.6, 1.7)), objectives),  # ttft missed
        measure(made(2, tokens=(1.0, 1.3)), objectives),  # tpot missed
        measure(made(3, tokens=(1.0,)), objectives),  # has no tpot: good
        measure(failed(4), objectives),
        measure(made(5, cancelled=True), objectives),
    ]
    assert [request.good for request in requests] == [
        True,
        False,
        False,
        True,
        False,
        None,
    ]
    figures = summarise(requests, 10.0, [50], goodput=True)
    assert figures["request_goodput"] == pytest.approx(0.2)
    assert figures["attainment"] == pytest.approx(0.4)
    assert figures["completion_rate"] == pytest.approx(0.8)
    assert (figures["completed"], figures["failed"], figures["cancelled"]) == (4, 1, 1)


def test_objectives_relative_to_the_idle_server():
    objectives = parse_objectives(["ttft:1.5x,500"], ["ttft:2x"])
    short = made(isolated_ttft_s=0.1)
    long = made(kind="long", isolated_ttft_s=10.0)
    assert objectives.limits(short) == {"ttft": 0.5}
    assert objectives.limits(made(isolated_ttft_s=2.0)) == {"ttft": 3.0}
    assert objectives.limits(long) == {"ttft": 20.0}
    assert objectives.limits(made()) == {}
    assert objectives.relative
    assert not parse_objectives(["tpot:50"]).relative


def test_long_requests_inherit_what_they_have_no_own_objective_for():
    objectives = parse_objectives(["ttft:500", "tpot:50"], ["ttft:60000"])
    assert objectives.limits(made(kind="long")) == {"ttft": 60.0, "tpot": 0.05}


def test_headers_for_llm_d():
    objectives = Objectives({"ttft": Bound(0.5), "tpot": Bound(0.05), "e2el": Bound(9)})
    assert objective_headers(objectives, made()) == {
        "x-llm-d-slo-ttft-ms": "500",
        "x-llm-d-slo-tpot-ms": "50",
    }


@pytest.mark.parametrize(
    "word",
    ["ttft", "ttft:", "ttft:0", "ttft:-5", "itl:5", "ttft:x", "ttft:infx", "ttft:nan"],
)
def test_what_is_no_objective(word):
    with pytest.raises(LoadgenError, match="--goodput"):
        parse_objectives([word])


@pytest.mark.parametrize(
    ("arrivals", "expected"),
    [
        ([1.0, 1.125, 1.25], (0, 3)),
        ([0.5, 1.125, 1.25], (0, 3)),  # the first token's slack of 0.5 s carries over
        # 0.75 s against 0.125 + 0.5: missed, and slack starts anew
        ([0.5, 1.25, 1.375], (2, 4)),
        # the first token two deadlines late: the first deadline and two more
        ([1.25], (3, 3)),
        ([1.0, 1.75], (6, 7)),  # a stall misses a deadline for each 0.125 s
        ([], (0, 0)),
    ],
)
def test_deadlines_as_etalon_counts_them(arrivals, expected):
    assert deadlines(arrivals, 1.0, 0.125) == expected


def test_fluidity_of_requests_and_of_the_class():
    objectives = parse_objectives(["ttft:1000", "tpot:125"])
    requests = [
        measure(made(0, tokens=(1.0, 1.125)), objectives),
        measure(made(1, tokens=(1.0, 1.75)), objectives),
    ]
    assert requests[0].fluidity == 1.0
    assert requests[1].fluidity == pytest.approx(1 / 7)
    figures = summarise(requests, 1.0, [50], goodput=True)
    assert figures["fluidity_index"] == pytest.approx((1 + 1 / 7) / 2)
    assert figures["deadline_miss_rate"] == pytest.approx(6 / 9)


def test_announcements_that_come_true_and_deadlines_that_are_met():
    """First tokens after a second, announced for 1.3, 1.0 and 0.7 s and wanted within a second."""
    told = [
        measure(made(announced_ttft_s=announced_s, deadline_s=deadline_s), NONE)
        for announced_s, deadline_s in ((1.3, 1.1), (1.0, 0.9), (0.7, 2.0), (None, 2.0))
    ]
    figures = summarise(told, 2.0, [50], goodput=False)
    assert figures["announced_true"] == pytest.approx(1 / 3)
    assert figures["announced_late"] == pytest.approx(1 / 3)
    assert figures["deadlines_met"] == pytest.approx(3 / 4)


def test_classes_and_errors():
    requests = [
        measure(r, NONE)
        for r in (
            made(0, kind="probe"),
            made(1),
            failed(2),
            failed(3),
            failed(4, error="lost"),
        )
    ]
    assert classes_of(requests) == ["short", "probe"]
    assert len(load_of(requests)) == 4
    assert errors_of(requests) == {"HTTP 503: full": 2, "lost": 1}
