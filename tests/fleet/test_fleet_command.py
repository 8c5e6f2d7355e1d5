"""`medha-loadgen fleet`: its traffic, its table, and that it goes on where it was cut short."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
from twin_world import deployment_of

from loadgen.__main__ import main
from loadgen.records import LONG
from loadgen.twin.fleet.traffic import Rate, mixed
from loadgen.twin.serve_config import serve_config
from medha_actors.config import load

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
    assert (
        main(["fleet", *flags, "--contenders", "predicted", "--limit-s", "1e-9"]) == 0
    )
    assert not list(tmp_path.glob("*.json"))
    assert main(["fleet", *flags, *contenders]) == 0
    first = capsys.readouterr()
    assert "predicted, dboost" in first.out
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


def test_simulate_takes_a_router(tmp_path, capsys):
    small = [
        "simulate",
        "--model",
        "smollm2-135m",
        "--gpu",
        "a100",
        "--num-prompts",
        "30",
    ]
    pace = ["--request-rate", "20", "--input-len", "200", "--output-len", "5"]
    place = ["--result-dir", str(tmp_path / "run")]
    assert main([*small, *pace, "--grids", "3", "--router", "predicted", *place]) == 0
    config = (tmp_path / "run" / "config.yml").read_text()
    assert "router: predicted" in config
    assert "replicas: 3" in config
    again = ["--result-dir", str(tmp_path / "again")]
    assert main([*small, *pace, "--grids", "3", *again]) == 2
    assert "--grids needs a --router" in capsys.readouterr().err


def test_a_plan_of_several_replicas_is_a_fleet():
    deployment = deployment_of(replicas=3)
    config = msgspec.yaml.decode(serve_config(deployment).encode())
    assert load(config["applications"][0]["args"]).fleet.num_grids == 3
    alone = msgspec.yaml.decode(serve_config(deployment_of()).encode())
    assert "fleet" not in alone["applications"][0]["args"]
