"""Overload in the twin, and whether what is announced comes true."""

from array import array

import msgspec
import pytest

from loadgen.__main__ import main
from loadgen.judge.promises import promises_of
from loadgen.records import LONG, RequestRecord
from loadgen.twin.admission.calibration import curve_of
from loadgen.twin.admission.floods import Flood, capacity_of, play_flood
from loadgen.twin.options import scheduler_of
from loadgen.twin.replay import play
from loadgen.twin.scenarios import scenario_of


def flood_of(**given):
    return Flood(
        **{"policy": "spf", "late": "shed", "prompt_tokens": 200, "load": 4.0} | given
    )


@pytest.fixture(scope="module")
def capacity():
    return capacity_of(flood_of(), 30)


@pytest.mark.parametrize("policy", ["spf", "lars", "dboost"])
def test_goodput_stays_at_four_times_the_capacity(policy, capacity):
    found = play_flood(flood_of(policy=policy, seconds=6.0), capacity)
    assert found.goodput >= 0.9 * capacity
    assert found.in_time >= 0.9
    assert found.refused > 2 * capacity


def test_without_admission_everybody_is_late_together(capacity):
    found = play_flood(flood_of(late="accept", seconds=6.0), capacity)
    assert found.goodput < 0.5 * capacity
    assert found.refused == 0


def test_who_comes_back_when_told_is_in_time(capacity):
    found = play_flood(flood_of(seconds=6.0, load=3.0, returns=3), capacity)
    assert found.came_back > 20
    assert found.returned_in_time >= 0.8
    assert found.goodput >= 0.85 * capacity


@pytest.mark.parametrize("policy", ["dspf", "dboost"])
def test_an_idle_server_meets_its_own_deadlines(policy):
    """The convoy mix at a tenth of the capacity: now and then a short one comes beside a long one.
    The first after a start is in time, too."""
    scenario = scenario_of("convoy", 300, seed=1)
    deployment = msgspec.structs.replace(
        scenario.deployment, noise=0.03, scheduler=scheduler_of(policy, {})
    )
    sent = [
        msgspec.structs.replace(one, at=(one.at or 0.0) / 0.18)  # the capacity is 1.8/s
        for one in scenario.requests
    ]
    records = play(deployment, sent).records
    every, _, _ = promises_of(records)
    assert every.in_time >= 0.99
    assert promises_of(records[:1])[0].in_time == 1.0


def record_of(kind, announced_s, ttft_s):
    return RequestRecord(
        index=0,
        kind=kind,
        prompt_tokens=10,
        output_tokens=1,
        sent_at=5.0,
        announced_ttft_s=announced_s,
        deadline_s=1.0,
        token_times=array("d", [5.0 + ttft_s]),
    )


def test_promises_are_counted_by_kind():
    records = [record_of("short", 1.0, ratio) for ratio in (0.7, 0.9, 1.0, 1.2, 1.5)]
    records += [record_of(LONG, 10.0, 11.0), record_of("short", None, 1.0)]
    every, short, long = promises_of(records)
    assert (every.count, short.count, long.count) == (6, 5, 1)
    assert (short.true, short.late) == pytest.approx((0.6, 0.2))
    assert (short.in_time, long.in_time) == pytest.approx((4 / 6, 0.0))
    assert long.p50 == pytest.approx(1.1)
    _, rows = curve_of(records)
    assert rows[-1][:2] == ["10,000 ms", "11,000 ms"]


def test_the_commands(capsys):
    asked = [
        "--num-prompts",
        "20",
        "--seeds",
        "1",
        "--loads",
        "0.5",
        "--policies",
        "spf",
    ]
    assert main(["promises", *asked, "--curve"]) == 0
    assert "convoy 0.5 spf" in capsys.readouterr().out
    asked = ["--policies", "spf", "--prompts", "200", "--loads", "2", "--seconds", "1"]
    assert main(["overload", *asked]) == 0
    assert "200 tokens, spf, shed, 2x" in capsys.readouterr().out
    assert main(["promises", "--policies", "nobody"]) != 0
