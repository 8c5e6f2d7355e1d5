"""The twin's commands, as a user runs them."""

import json
import re
from pathlib import Path

import msgspec
import pytest
from twin_world import convoy, deployment_of

from loadgen.__main__ import main
from loadgen.judge.isolated import predict
from loadgen.show.compare import read_run
from loadgen.twin.commands import fidelity
from loadgen.twin.commands.fidelity import FidelityOptions, requests_of
from loadgen.twin.commands.planner import fewest
from loadgen.twin.correction import Correction, correction_of, replay
from loadgen.twin.cost import profile_of
from loadgen.twin.paper import baseline, scaling
from loadgen.twin.paper import convoy as paper_convoy
from loadgen.twin.paper import reproduce as table
from loadgen.twin.paper.common import Row
from loadgen.twin.replay import idle_points
from loadgen.twin.serve_config import arguments
from medha_actors.config import load

SMALL = ["--model", "smollm2-135m", "--gpu", "cpu-2core", "--tpot-ms", "200"]
LOAD = [
    "--num-prompts",
    "40",
    "--input-len",
    "20:300",
    "--output-len",
    "4:12",
    "--request-rate",
    "2",
]


@pytest.fixture(autouse=True)
def _plain(monkeypatch):
    monkeypatch.setattr("loadgen.show.figures.available", lambda: False)


def simulate(directory, *more):
    return main(
        ["simulate", *SMALL, "--spp", "2", *LOAD, "--result-dir", str(directory), *more]
    )


@pytest.fixture
def profile(tmp_path):
    deployment = deployment_of(spp=2)
    file = tmp_path / "profile.json"
    file.write_bytes(
        msgspec.json.encode(profile_of(deployment.model, deployment.device, stages=2))
    )
    return str(file)


def test_simulate_writes_what_a_real_run_writes(tmp_path, capsys):
    assert simulate(tmp_path / "run", "--goodput", "ttft:3x,500") == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["completed"], result["simulated"], result["policy"]) == (
        40,
        True,
        "dboost",
    )
    assert {
        "median_ttft_ms",
        "p99_itl_ms",
        "median_normalized_ttft",
        "request_goodput",
    } <= result.keys()
    for name in (
        "report.html",
        "config.yml",
        "metrics/ttfc.csv",
        "traces/trace.jsonl",
        "isolated_ttft.json",
    ):
        assert (tmp_path / "run" / name).exists()
    assert "TTFT P50" in capsys.readouterr().out
    assert simulate(tmp_path / "run") == 2
    assert main(["compare", str(tmp_path / "run"), str(tmp_path / "run")]) == 0


def test_fidelity_of_a_record_made_by_the_twin(tmp_path, capsys, profile):
    """The record is slower than the profile by 1.5: found from its idle measurements, not from its
    load."""
    slow = tmp_path / "slow.json"
    stages = msgspec.json.decode(Path(profile).read_bytes())["stages"]
    for stage in stages:
        stage["rows"] = [[rows, 1.5 * seconds] for rows, seconds in stage["rows"]]
        stage |= {
            name: 1.5 * value for name, value in stage.items() if name.endswith("_s")
        }
    slow.write_text(json.dumps({"stages": stages}))
    assert simulate(tmp_path / "record", "--profile", str(slow)) == 0
    assert (
        main(
            [
                "fidelity",
                str(tmp_path / "record"),
                "--profile",
                profile,
                "--result-dir",
                str(tmp_path / "twin"),
            ]
        )
        == 0
    )
    out, err = capsys.readouterr()
    assert "1.50 times" in err or "1.49 times" in err
    assert "every figure within 10%" in out
    assert (
        json.loads((tmp_path / "twin" / "fidelity.json").read_text())["within"] is True
    )
    assert (
        main(["fidelity", str(tmp_path / "record"), "--profile", profile, "--raw"]) == 1
    )


def test_fidelity_takes_the_servers_own_figures(tmp_path, capsys, profile):
    """However long batches took, the seconds that the stages worked say how fast the server was."""
    assert simulate(tmp_path / "record") == 0
    record = read_run(tmp_path / "record")
    deployment = fidelity.deployment_of(
        FidelityOptions(directory="", profile=profile), record
    )
    requests = requests_of(record)
    played = replay(deployment, requests, Correction())
    worked_s = sum(played.busy) * (played.duration_s - requests[0].at)
    page = 'medha_batch_work_seconds_total{{kind="prefill"}} {2}\n'
    page += 'medha_batch_work_seconds_total{{kind="decode"}} {2}\n'
    page += 'medha_batch_calibrated_seconds_total{{kind="prefill"}} {5}\n'
    page += 'medha_batch_calibrated_seconds_total{{kind="decode"}} {5}\n'
    page += 'medha_prefill_chunk_tokens_bucket{{le="16"}} {0}\n'
    page += "medha_prefill_chunk_tokens_count {0}\nmedha_prefill_chunk_tokens_sum {1}\n"
    page += (
        "medha_iteration_tokens_total_count {0}\nmedha_iteration_tokens_total_sum {1}\n"
    )
    page += 'medha_stage_busy_seconds_total{{stage="0"}} {3}\n'
    page += 'medha_stage_busy_seconds_total{{stage="1"}} {3}\n'
    page += (
        "medha_predictor_error_ratio_count {0}\nmedha_predictor_error_ratio_sum {4}\n"
    )
    command = ["fidelity", str(tmp_path / "record"), "--profile", profile, "--metrics"]
    before = tmp_path / "before"
    after = tmp_path / "after"
    for scale in (1.0, 1.25):
        before.write_text(page.format(10, 100, 0.0, 5.0, 0.0, 0.0))
        after.write_text(page.format(110, 1100, scale, 5.0 + worked_s / 2, 0.1, 1.0))
        assert main([*command, str(before), str(after)]) == 0
        out, err = capsys.readouterr()
        assert re.search(r"batches +100 ", out)
        assert "1.00 times" in err
        assert "within 0%" in err
    before.rename(tmp_path / "record" / "server_before.txt")
    after.rename(tmp_path / "record" / "server_after.txt")
    assert main(command[:-1]) == 0
    assert re.search(r"batches +100 ", capsys.readouterr().out)
    after.write_text("nothing")
    assert main([*command, str(before), str(after)]) == 2


def test_path_and_speed_are_told_apart():
    deployment = deployment_of(spp=2)
    points = [
        (length, 0.015 + 1.3 * seconds)
        for length, seconds in idle_points(deployment, convoy())
    ]
    found = correction_of(deployment, points)
    assert found.path_s == pytest.approx(0.015, rel=0.02)
    assert found.prefill == pytest.approx(1.3, rel=0.02)
    assert Correction() == Correction(0.0, 1.0, 1.0)
    assert predict(points, 50) > 0.015


def test_a_plan_is_found_and_its_configuration_loads(tmp_path, capsys):
    command = [
        "plan",
        "--model",
        "llama-3-8b",
        "--gpu",
        "h100",
        *LOAD,
        "--max-gpus",
        "4",
        "--kvp",
        "1",
    ]
    assert (
        main(
            [
                *command,
                "--goodput",
                "ttft:500",
                "tpot:50",
                "--result-dir",
                str(tmp_path / "plan"),
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "Cheapest: 1 x h100, tp1-spp1" in out
    assert "spp: 1" in (tmp_path / "plan" / "serve_config.yaml").read_text()
    config = load(
        arguments(deployment_of(spp=2, gpu="h100", model="llama-3-8b", kvp=2))
    )
    assert (config.parallel.spp, config.parallel.kvp) == (2, 2)


def test_a_plan_that_cannot_be_says_why(capsys):
    command = ["plan", "--gpu", "h100", *LOAD, "--max-gpus", "8", "--kvp", "1"]
    assert main([*command, "--model", "llama-3-8b", "--goodput", "tpot:0.5"]) == 1
    assert "asked are 0.5" in capsys.readouterr().out
    assert (
        main(
            [
                *command,
                "--model",
                "llama-3-70b",
                "--tp",
                "1",
                "--spp",
                "1",
                "--goodput",
                "tpot:100",
            ]
        )
        == 1
    )
    assert "does not fit" in capsys.readouterr().out
    assert main(command) == 2
    assert "plan needs objectives" in capsys.readouterr().err


def test_the_fewest_replicas():
    tried = []

    def share(replicas):
        tried.append(replicas)
        return 1.0 if replicas >= 5 else 0.5

    assert fewest(share, 0.99, 64) == (5, 1.0)
    assert max(tried) == 8
    assert fewest(share, 0.99, 3) == (None, 0.5)


def test_rows_agree_within_a_fifth():
    def row(ours, **more):
        return Row(key="k", what="w", theirs=(5.0, 6.0), ours=ours, **more)

    assert (row(5.5).ratio, row(5.5).agrees) == (1.0, True)
    assert row(3.9).agrees is False
    assert row(7.3).agrees is False
    assert row(9.0, at_least=True).agrees
    assert row(1.0, at_most=True).agrees


def test_reproduce_prints_and_keeps_the_rows(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scaling, "decision_seconds", lambda *_, **__: [2e-4])
    assert (
        main(
            [
                "reproduce",
                "--only",
                "kvp",
                "attention",
                "decision",
                "--result-dir",
                str(tmp_path / "r"),
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "ours / paper" in out
    assert "roofline" in out
    rows = json.loads((tmp_path / "r" / "reproduce.json").read_text())["rows"]
    assert {row["key"] for row in rows} == {"kvp", "attention", "decision"}
    assert main(["reproduce", "--only", "magic"]) == 2
    assert table.EXPERIMENTS.keys() >= {"convoy", "elastic", "spp", "frontier"}


def test_the_laboratory(capsys, tmp_path):
    command = [
        "laboratory",
        "--quick",
        "--scenarios",
        "convoy",
        "--loads",
        "0.75",
        "--policies",
        "fcfs",
        "lars",
        "spf",
    ]
    assert main([*command, "--result-dir", str(tmp_path / "lab")]) == 0
    found = {
        f["policy"]: f
        for f in json.loads((tmp_path / "lab" / "laboratory.json").read_text())
    }
    assert (
        found["spf"]["short_p50"]
        <= found["lars"]["short_p50"]
        < found["fcfs"]["short_p50"]
    )
    assert main([*command[:-3], "luck"]) == 2


def quiet(_: str) -> None:
    pass


def test_loongserves_rows_are_of_elastic_instances_and_of_fcfs(monkeypatch):
    monkeypatch.setattr(paper_convoy, "FRACTIONS", (0.05,))
    outcome = paper_convoy.convoy(20, quiet)
    assert outcome.figures["convoy"].keys() == {"esp_tp2", "esp_tp8", "fcfs", "lars"}
    medians = [row for row in outcome.rows if row.what.startswith("TTFT P50")]
    assert [row.theirs for row in medians] == [(30, 30)] * 3
    assert "LoongServe-like, TP2 ESP8" in medians[0].what
    assert "FCFS on our engine" in medians[2].what


def test_elastic_fleets_are_compared_by_their_instances():
    figure = baseline.elastic_fleets(20, quiet).figures["elastic"]
    runs = figure["runs"]
    assert len(runs) == 10
    assert {"TP2 ESP8", "TP8 ESP2, waits", "fcfs", "lars"} <= runs.keys()
    assert all(values["short P50"] <= values["short P99"] for values in runs.values())
    assert figure["draws"]["TP2 ESP8"][0] == pytest.approx(
        runs["TP2 ESP8"]["short P50"]
    )
