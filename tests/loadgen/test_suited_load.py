"""Commands whose load is to suit the server that they find."""

import json

import pytest

from loadgen.__main__ import main
from tests.loadgen.commands import error_line, result_of, rows_of
from tests.loadgen.scripted import ScriptedServer

pytestmark = pytest.mark.usefixtures("plain")
CALM = ("--quiet", "--late-threshold-ms", "5000")


def test_a_run_without_lengths_and_rate(tmp_path, capsys):
    with ScriptedServer(max_model_len=512) as server:
        arguments = ["run", "--base-url", server.url, "--duration", "0.2", *CALM]
        assert main([*arguments, "--result-dir", str(tmp_path / "r")]) == 0
        told = capsys.readouterr().err
        kinds = [
            call.request.headers["x-request-id"].split("-")[1] for call in server.calls
        ]
    assert kinds[:3] == ["trial", "speed", "speed"]
    result = result_of(tmp_path / "r")
    assert result["completed"] == result["num_prompts"] > 0
    prompts = {row["target_num_delta_prompt_tokens"] for row in rows_of(tmp_path / "r")}
    assert len(prompts) == 1
    assert prompts <= {16, 32, 64, 128, 256}
    assert "so: --output-len 128 --input-len 256 --request-rate " in told
    assert f"--request-rate {result['request_rate']:g}" in told


def test_a_run_with_no_flag_at_all(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("loadgen.workload.suiting.MOST_REQUESTS", 20)
    with ScriptedServer(max_model_len=512) as server:
        monkeypatch.setenv("MEDHA_BASE_URL", server.url)
        assert main(["run"]) == 0
    (directory,) = (tmp_path / "results").iterdir()
    assert result_of(directory)["completed"] == 20
    assert (
        f"results: {directory.relative_to(tmp_path) / 'report.html'}"
        in capsys.readouterr().out
    )


def test_given_lengths_that_are_too_long_are_told_before_anything_is_sent(
    tmp_path, capsys
):
    with ScriptedServer(max_model_len=50) as server:
        lengths = ["--input-len", "99", "--output-len", "5"]
        arguments = ["run", "--base-url", server.url, *lengths, *CALM]
        assert main([*arguments, "--result-dir", str(tmp_path / "r")]) == 2
        assert "the model takes 50: use --max-model-len 50" in error_line(capsys)
        assert server.calls == []


def test_a_server_that_fails_while_it_is_measured(tmp_path, capsys):
    async def answer(call):
        if call.number:
            await call.error(503, "full")
        else:
            await call.stream(call.whole())

    with ScriptedServer(answer) as server:
        arguments = ["run", "--base-url", server.url, *CALM]
        assert main([*arguments, "--result-dir", str(tmp_path / "r")]) == 2
    assert "HTTP 503: full; give --input-len" in error_line(capsys)
    assert not (tmp_path / "r").exists()


def test_capacity_without_lengths(tmp_path):
    with ScriptedServer(max_model_len=512) as server:
        search = [
            "--goodput",
            "e2el:60000",
            "--start-rate",
            "2000",
            "--highest-rate",
            "2000",
        ]
        arguments = ["capacity", "--base-url", server.url, *search, *CALM]
        assert main([*arguments, "--result-dir", str(tmp_path / "c")]) == 0
    (trial,) = json.loads((tmp_path / "c" / "capacity.json").read_text())["trials"]
    assert trial["figures"]["requests"] == 100
    assert trial["figures"]["input_tokens"] == 100 * 256
