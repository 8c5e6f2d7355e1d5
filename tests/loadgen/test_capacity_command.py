"""`medha-loadgen capacity` against a scripted server that can take only so much."""

import asyncio
import json
import time

import pytest

from loadgen.__main__ import main
from tests.loadgen.commands import error_line
from tests.loadgen.scripted import ScriptedServer

pytestmark = pytest.mark.usefixtures("plain")


def test_capacity_against_a_server_that_takes_150_per_second(tmp_path, capsys):
    tokens = 10.0
    last = time.monotonic()

    async def limited(call):
        nonlocal tokens, last
        now = time.monotonic()
        tokens = min(10.0, tokens + 150 * (now - last))
        last = now
        if call.number and tokens < 1:
            await call.error(429, "slow down")
            return
        tokens -= 1
        await call.stream(call.whole())

    arguments = [
        "capacity",
        "--num-prompts",
        "80",
        "--input-len",
        "16",
        "--output-len",
        "1",
        "--quiet",
        "--arrival",
        "fixed",
    ]
    arguments += [
        "--goodput",
        "e2el:5000",
        "--attainment",
        "0.6",
        "--start-rate",
        "60",
        "--tolerance",
        "0.3",
    ]
    with ScriptedServer(limited) as server:
        status = main(
            [
                *arguments,
                "--base-url",
                server.url,
                "--result-dir",
                str(tmp_path / "c"),
                "--late-threshold-ms",
                "5000",
            ]
        )
    assert status == 0
    content = json.loads((tmp_path / "c" / "capacity.json").read_text())
    assert 120 <= content["capacity"] <= 500
    assert content["failed_at"] <= content["capacity"] * 1.3
    assert len(list((tmp_path / "c").glob("rate-*"))) == len(content["trials"])
    assert "requests/s hold the objectives" in capsys.readouterr().out


def test_capacity_cuts_a_hopeless_trial_short(tmp_path, monkeypatch):
    monkeypatch.setattr("loadgen.capacity.doubt.LOOK_S", 0.01)

    async def answer(call):
        if call.number > 4:
            # silent for ever: without the cut, the trial would not end
            await asyncio.Event().wait()
        await call.stream(call.whole())

    arguments = [
        "capacity",
        "--num-prompts",
        "10",
        "--input-len",
        "16",
        "--output-len",
        "1",
        "--quiet",
        "--max-runs",
        "1",
    ]
    arguments += [
        "--goodput",
        "ttft:50",
        "--start-rate",
        "100",
        "--result-dir",
        str(tmp_path / "c"),
    ]
    with ScriptedServer(answer) as server:
        assert (
            main([*arguments, "--base-url", server.url, "--late-threshold-ms", "5000"])
            == 1
        )
    (trial,) = json.loads((tmp_path / "c" / "capacity.json").read_text())["trials"]
    assert (trial["cut_short"], trial["holds"]) == (True, False)
    assert trial["attainment"] < 0.99


def test_capacity_needs_objectives_and_no_rate(tmp_path, capsys):
    assert main(["capacity", "--result-dir", str(tmp_path / "c")]) == 2
    assert "capacity needs objectives" in error_line(capsys)
    assert (
        main(
            [
                "capacity",
                "--goodput",
                "ttft:5",
                "--request-rate",
                "3",
                "--result-dir",
                str(tmp_path / "c"),
            ]
        )
        == 2
    )
    assert "leave out --request-rate" in error_line(capsys)
