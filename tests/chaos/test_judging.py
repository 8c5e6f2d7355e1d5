"""Judging of a death by made-up streams and probes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.judging import (
    Goal,
    Probe,
    Stream,
    back_after_s,
    is_whole,
    judge,
    missed,
    most_of_one,
)

REFERENCE = Stream("s", text="abc", tokens=3, finish_reason="length")
GOAL = Goal(whole=1, back_s=5.0, pause_s=3.0, neighbour_pause_s=1.0)


def stream(
    text="abc",
    tokens=3,
    reason="length",
    error=None,
    moments=(1.0, 1.1, 1.5),
    resumed=0,
):
    return Stream("s", text, list(moments), tokens, reason, error, resumed)


@pytest.mark.parametrize(
    "broken",
    [
        stream(text="abbc"),
        stream(text="ab", tokens=2),
        stream(tokens=4),
        stream(reason="stop"),
        stream(reason=None, error="cut"),
        stream(error="cut after the end"),
    ],
)
def test_a_stream_is_whole_only_if_it_is_as_undisturbed(broken):
    assert is_whole(stream(), REFERENCE)
    assert is_whole(stream(resumed=1), REFERENCE)
    assert not is_whole(broken, REFERENCE)


def test_the_longest_pause_lies_between_two_tokens():
    assert stream().longest_pause_s == pytest.approx(0.4)
    assert stream(moments=(1.0,)).longest_pause_s is None


@pytest.mark.parametrize(
    ("probes", "expected"),
    [
        ([], None),
        ([(-1.0, 0.5, True)], None),  # sent before the kill
        ([(0.1, 0.2, True), (0.2, 0.3, True)], 0.2),  # nobody noticed
        ([(0.1, 0.2, False), (1.0, 6.0, True), (2.0, 5.5, True)], 5.5),
        ([(0.1, 0.2, True), (0.2, 0.3, False), (0.3, 0.4, True)], 0.4),
        ([(0.1, 0.2, True), (0.2, 0.3, False)], None),
        # in the order in which they were sent
        ([(0.3, 0.4, True), (0.2, 9.0, False)], 0.4),
    ],
)
def test_service_is_back_when_no_later_request_fails(probes, expected):
    made = [
        Probe(sent, ended, None if good else "refused") for sent, ended, good in probes
    ]
    assert back_after_s(made, 0.0) == expected


@given(
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10), st.booleans()), max_size=20)
)
def test_service_is_never_back_before_a_failure_was_sent(made):
    probes = [
        Probe(sent, sent + took, None if good else "no")
        for sent, took, good in sorted(made)
    ]
    back_s = back_after_s(probes, 0.0)
    failures = [probe.sent_at for probe in probes if probe.error is not None]
    assert back_s is None or all(back_s >= failed for failed in failures)
    assert (back_s is None) == (not probes or probes[-1].error is not None)


def test_goals_are_judged_one_by_one():
    probes = [Probe(0.1, 0.2)]
    good = judge([stream()], {"s": REFERENCE}, probes, 0.0)
    assert (good.whole, good.cut, good.at_risk, good.errors) == (1, 0, 1, ())
    assert missed(GOAL, good) == []
    slow = judge([stream(moments=(1.0, 5.0))], {"s": REFERENCE}, [Probe(0.1, 5.0)], 0.0)
    assert missed(GOAL, slow) == [
        "back after 5.0 s, not under 5 s",
        "longest pause 4.0 s, not under 3 s",
        "the neighbours' longest pause 4.0 s, not under 1 s",
    ]
    dead = judge(
        [stream(text="a", reason=None, error="cut")], {"s": REFERENCE}, [], 0.0
    )
    assert missed(GOAL, dead) == ["0 of 1 streams whole", "service did not come back"]
    assert dead.errors == ("cut",)


def test_who_did_not_pass_through_the_dead_one_must_not_be_cut():
    references = {"s": REFERENCE}
    both = judge(
        [stream(resumed=1), stream(resumed=1)], references, [Probe(0.1, 0.2)], 0.0, 1
    )
    assert missed(Goal(whole=2), both) == [
        "2 streams cut, 1 passed through the dead one"
    ]
    one = judge(
        [stream(resumed=1), stream(moments=(1, 9))],
        references,
        [Probe(0.1, 0.2)],
        0.0,
        1,
    )
    assert one.neighbour_pause_s == 8
    assert missed(Goal(whole=2, neighbour_pause_s=1.0), one) == [
        "the neighbours' longest pause 8.0 s, not under 1 s"
    ]


@pytest.mark.parametrize(
    ("held", "most"),
    [([5, 4], 5), ([4], 5), ([], 9), ([7], 7), ([0, 0], 9), ([6, 5], 6)],
)
def test_streams_that_no_replica_has_told_of_may_all_be_at_one(
    held: list[int], most: int
):
    assert most_of_one(held, 9) == most
