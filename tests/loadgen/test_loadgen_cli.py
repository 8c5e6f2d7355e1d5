"""The command line, from arguments to exit status, against a scripted server in a thread."""

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest

from loadgen.__main__ import main
from tests.loadgen.commands import load, result_of, rows_of
from tests.loadgen.scripted import DONE, ScriptedServer, event

pytestmark = pytest.mark.usefixtures("plain")


def test_a_run(tmp_path, capsys):
    with ScriptedServer() as server:
        assert (
            load(
                server,
                tmp_path / "r",
                "--long-fraction",
                "0.3",
                "--long-input-len",
                "500:600",
                "--ignore-eos",
            )
            == 0
        )
        bodies = [call.body for call in server.calls]
    assert len(bodies) == 13  # one is the trial request
    assert all(
        body["ignore_eos"] is True and body["model"] == "scripted" for body in bodies
    )
    result = result_of(tmp_path / "r")
    assert (
        result["completed"],
        result["total_output_tokens"],
        result["request_rate"],
    ) == (
        12,
        36,
        400.0,
    )
    assert set(result["classes"]) == {"all", "short", "long"}
    assert all(
        row["target_num_delta_prompt_tokens"] == row["num_total_prompt_tokens"]
        for row in rows_of(tmp_path / "r")
    )
    printed = capsys.readouterr()
    assert "TTFT P99, ms" in printed.out
    assert "12 requests (" in printed.err


def test_everything_fails(tmp_path, capsys):
    async def answer(call):
        if call.number == 0:
            await call.stream(call.whole())
        elif call.number % 2:
            await call.error(503, "full")
        else:
            await call.stream(
                event("a"), b'data: {"error": {"message": "died"}}\n\n', DONE
            )

    with ScriptedServer(answer) as server:
        assert load(server, tmp_path / "r") == 1
    result = result_of(tmp_path / "r")
    assert (result["completed"], result["failed"]) == (0, 12)
    assert set(result["errors"]) == {"HTTP 503: full", "died"}
    assert "6 x HTTP 503: full" in capsys.readouterr().out


def test_an_unhealthy_run_says_what_to_do_and_can_fail(tmp_path, capsys):
    async def miscounting(call):
        await call.stream(call.whole(extra_prompt_tokens=5 if call.number else 0))

    with ScriptedServer(miscounting) as server:
        assert load(server, tmp_path / "a") == 0
    told = capsys.readouterr().out
    assert "load generator's own health: FAILED\n" in told
    assert "\n  prompt length: 12 of 12 prompts differ from the plan" in told
    assert (
        "\n    what to do: the server counts tokens in another way: try --prompt-format"
        in told
    )
    assert (
        "\n  exit code 0 all the same: the results are written (--fail-unhealthy: 3)\n"
        in told
    )
    with ScriptedServer(miscounting) as server:
        assert load(server, tmp_path / "b", "--fail-unhealthy") == 3
    assert "exit code 0" not in capsys.readouterr().out
    assert (
        "by +5 to +5 tokens"
        in (tmp_path / "b" / "health_check_results.txt").read_text()
    )


def test_control_c_writes_what_there_is(tmp_path, capsys):
    async def answer(call):
        if call.number == 6:
            os.kill(os.getpid(), signal.SIGINT)
        if call.number >= 5:
            await asyncio.Event().wait()  # silent
        await call.stream(call.whole())

    with ScriptedServer(answer) as server:
        assert (
            load(
                server, tmp_path / "r", "--request-rate", "50", "--num-prompts", "1000"
            )
            == 130
        )
    result = result_of(tmp_path / "r")
    assert result["interrupted"] is True
    assert result["completed"] == 4
    assert result["cancelled"] >= 2
    assert (tmp_path / "r" / "report.html").exists()
    assert "the results so far" in capsys.readouterr().err


def test_compare_prints_and_writes(tmp_path, capsys):
    with ScriptedServer() as server:
        for policy in ("fcfs", "lars"):
            assert load(server, tmp_path / policy, "--policy", policy) == 0
    capsys.readouterr()
    directories = [str(tmp_path / "fcfs"), str(tmp_path / "lars")]
    assert main(["compare", *directories, "--result-dir", str(tmp_path / "cmp")]) == 0
    assert "Relative to fcfs" in capsys.readouterr().out
    assert (tmp_path / "cmp" / "compare.html").exists()
    assert main(["compare", *directories, "--result-dir", str(tmp_path / "cmp")]) == 2
    assert main(["compare", directories[0]]) == 2


def test_unknown_flags_are_refused_and_vllms_harmless_ones_are_taken(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["run", "--request-rat", "3"])
    with ScriptedServer() as server:
        assert (
            load(
                server,
                tmp_path / "r",
                "--backend",
                "openai-chat",
                "--save-result",
                "--disable-tqdm",
            )
            == 0
        )
        assert "messages" in server.calls[-1].body


@pytest.mark.parametrize("command", [[], ["run"], ["capacity"]])
def test_the_help_has_the_exit_codes(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    told = capsys.readouterr().out
    for code in (0, 1, 2, 3, 130):
        assert f"\n  {code:<3}  " in told


def test_no_command_is_helped(capsys):
    assert main([]) == 2
    told = capsys.readouterr().err
    for name in ("run", "capacity", "compare", "exit codes"):
        assert name in told


def test_importing_is_light():
    code = (
        "import loadgen.__main__, sys; print({'ray', 'torch', 'transformers', 'matplotlib'} & "
        "set(sys.modules))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "set()\n"
    )


def test_selftest(capsys):
    assert (
        main(
            [
                "selftest",
                "--request-rate",
                "40",
                "--tokens-per-s",
                "120",
                "--duration",
                "0.3",
            ]
        )
        == 0
    )
    figures = json.loads(capsys.readouterr().out)
    assert (figures["requests"], figures["failed"]) == (12, 0)
    assert figures["tokens_per_s"] > 0
    assert figures["ttft_error_ms"]["p50"] > -1
    assert main(["selftest", "--request-rate", "0"]) == 2
