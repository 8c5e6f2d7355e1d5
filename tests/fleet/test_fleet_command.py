"""`medha-loadgen fleet`: its traffic, its table, and that it goes on where it was cut short."""

from __future__ import annotations

from itertools import pairwise

import pytest

from loadgen.__main__ import main
from loadgen.records import LONG
from loadgen.twin.fleet.traffic import Rate, mixed

SMALL = ["--model", "smollm2-135m", "--gpu", "a100", "--rate", "3", "--for", "4"]


def test_traffic_is_single_requests_and_whole_sessions():
    planned = mixed(Rate(20.0), 60.0, seed=1, in_sessions=0.5)
    assert [request.index for request in planned] == list(range(len(planned)))
    turns = [request for request in planned if request.turn is not None]
    singles = [request for request in planned if request.turn is None]
    assert len(singles) == pytest.approx(600, rel=0.15)
    assert len(turns) == pytest.approx(600, rel=0.35)
    assert 0.02 < sum(one.kind == LONG for one in singles) / len(singles) < 0.09
    for before, turn in pairwise(turns):
        if turn.after is None:
            assert 0 <= turn.at <= 60
        else:
            assert turn.after == before.index
            assert turn.turn.session == before.turn.session
    assert all(one.known_tokens is None for one in singles)
    assert mixed(Rate(20.0), 60.0, seed=1, in_sessions=0.5) == planned


def test_a_day_has_a_night():
    rate = Rate(5.0, swing=0.8, day_s=1000.0)
    arrivals = [one.at for one in mixed(rate, 1000.0, seed=0, in_sessions=0.0)]
    night = sum(at < 200 or at > 800 for at in arrivals)
    noon = sum(300 < at < 700 for at in arrivals)
    assert noon > 3 * night
    assert len(arrivals) == pytest.approx(5000, rel=0.1)


def test_the_command_writes_its_table_and_goes_on(tmp_path, capsys):
    flags = [*SMALL, "--grids", "1", "2", "--result-dir", str(tmp_path)]
    contenders = ["--contenders", "predicted", "random+fcfs"]
    assert main(["fleet", *flags, "--contenders", "predicted", "--limit-s", "1e-9"]) == 0
    assert not list(tmp_path.glob("*.json"))
    assert main(["fleet", *flags, *contenders]) == 0
    first = capsys.readouterr()
    assert "predicted, lars" in first.out
    assert "random, fcfs_chunked: 1 GPUs for 95% good" in first.out
    assert len(list(tmp_path.glob("*.json"))) == 4
    assert main(["fleet", *flags, *contenders]) == 0
    again = capsys.readouterr()
    assert again.out.splitlines()[-6:] == first.out.splitlines()[-6:]
    assert "% good" not in again.err  # nothing was played again
    assert (tmp_path / "fleet.md").read_text().startswith("| router, policy |")


def test_a_day_is_told_with_its_gpu_hours(tmp_path, capsys):
    day = ["--day", "60", "--grids", "3", "--contenders", "predicted"]
    assert main(["fleet", *SMALL, *day, "--result-dir", str(tmp_path)]) == 0
    assert "GPU hours" in capsys.readouterr().out
    assert (tmp_path / "day.md").exists()


def test_what_it_does_not_know_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["fleet", "--contenders", "clever", "--result-dir", str(tmp_path)])
    assert "clever" in capsys.readouterr().err
