"""What the commands print, and what they take for a fault, without a server."""

import pytest

from tests.chaos import __main__ as command
from tests.chaos import campaigns, kills, poison, soak
from tests.chaos.census import Process
from tests.chaos.growth import Snapshot
from tests.chaos.judging import Seen
from tests.chaos.server import NotSettledError
from tests.chaos.traffic import fault_of

SEEN = Seen(
    streams=9,
    whole=9,
    cut=0,
    at_risk=9,
    pause_median_s=1.0,
    pause_max_s=2.0,
    neighbour_pause_s=2.0,
    back_s=2.5,
    failed_probes=0,
)


def outcome(repeat, seen=SEEN, missed=()):
    return kills.Outcome(
        "stage",
        repeat,
        9,
        [5] * 9,
        64,
        seen,
        {"stage": 1},
        10**9,
        2 * 10**9,
        list(missed),
    )


def test_repetitions_share_a_row():
    lost = Seen(9, 7, 2, 9, 3.0, 6.5, 6.5, None, 4, ("cut",))
    table = kills.table([outcome(0), outcome(1, lost, ["7 of 9 streams whole"])])
    (row,) = table.splitlines()[2:]
    assert row == (
        "| a stage | 9, 7 of 9 | 0, 2 | 2.0, 6.5 | 2.5, - | stage 1 | 1,000, 2,000 "
        "| 7 of 9 streams whole |"
    )


def test_every_death_has_a_name_of_its_own_and_a_goal_for_the_streams():
    assert len(set(kills.NAMES)) == len(kills.KILLS)
    assert all(0 <= kill.goal.whole <= 9 for kill in kills.KILLS)


def test_a_poison_that_harms_others_is_named():
    (refused, *_) = poison.POISONS
    assert poison.missed(refused, 400, rebuilds=0, whole=9, bystanders=9) == []
    assert poison.missed(refused, 500, rebuilds=2, whole=3, bystanders=9) == [
        "answered 500, not 400",
        "2 rebuilds",
        "3 of 9 bystanders whole",
    ]


def test_a_soak_tells_each_moment():
    rest = Snapshot([Process(1, "stage", 10**9, 40, 20)], 0, 9, [], [])
    told = soak.text(
        soak.Report(
            1.0, ["stage"], {"chat": 3}, {}, {"chat: HTTP 500": 1}, [rest] * 3, []
        )
    )
    assert "| stage | 1 / 1 / 1 | 1,000 / 1,000 / 1,000 |" in told
    assert "- wrong answers: chat: HTTP 500 1" in told
    assert "- grown: nothing" in told


@pytest.mark.parametrize(
    ("stream", "fault"),
    [
        (b'data: {"choices": []}\n\ndata: [DONE]\n\n', None),
        (b'data: {"choices": []}\n\n', "the stream was cut"),
        (b'data: {"error": {"message": "lost"}}\n\ndata: [DONE]\n\n', "lost"),
    ],
)
def test_faults_of_a_stream(stream, fault):
    assert fault_of(stream) == fault


def test_memory_that_did_not_come_back_is_named():
    before = {"haproxy": 12, "stage": 1000}
    peak = {"stage": 3000}
    settled = {"stage": 1148}
    assert campaigns.kept(before, settled) == ["stage: memory 1000 -> 1148 MB"]
    assert campaigns.kept(before, {"stage": 1147, "haproxy": 12}) == []
    rows = campaigns.memory_table(before, peak, settled).splitlines()[2:]
    assert rows == ["| haproxy | 12 | - | - |", "| stage | 1000 | 3000 | 1148 |"]


def test_all_goes_on_after_a_failure_and_says_what_failed(
    monkeypatch, tmp_path, capsys
):
    ran = []

    def noted(name, status):
        def run(*_arguments):
            ran.append(name)
            return status

        return run

    def raising(*_arguments):
        raise NotSettledError("not at rest")

    monkeypatch.setattr(kills, "run", noted("kills", 1))
    monkeypatch.setattr(poison, "run", noted("poison", 0))
    monkeypatch.setattr(campaigns, "fuzz", noted("fuzz", 1))
    monkeypatch.setattr(campaigns, "hostile", noted("hostile", 1))
    monkeypatch.setattr(soak, "run", raising)
    assert command.everything(tmp_path) == 1
    assert ran == ["kills", "poison", "fuzz", "hostile"]
    assert "failed: kills, fuzz, hostile, soak" in capsys.readouterr().out
