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


def test_same_seed_same_prompts_where_that_is_asked_for(tmp_path):
    with ScriptedServer() as server:
        for name in "ab":
            assert load(server, tmp_path / name, "--seed", "3", "--same-prompts") == 0
        prompts = [str(call.body["prompt"]) for call in server.calls]
    assert sorted(prompts[:13]) == sorted(prompts[13:])
    assert len(set(prompts)) == 13


def test_no_load_sends_prompts_that_the_server_may_have_cached_from_an_earlier_one(
    tmp_path,
):
    with ScriptedServer() as server:
        for name in "ab":
            assert load(server, tmp_path / name, "--seed", "3") == 0
        prompts = [call.body["prompt"] for call in server.calls]
    lengths = [len(prompt) for prompt in prompts]
    assert sorted(lengths[:13]) == sorted(lengths[13:])
    # the trial is always the same
    assert len({str(prompt[:16]) for prompt in prompts}) == 25


def test_closed_loop_probes_warmups_and_isolated_times(tmp_path):
    async def slow(call):
        await asyncio.sleep(0.002)
        await call.stream(call.whole())

    more = [
        "--max-concurrency",
        "3",
        "--probe-request-rate",
        "200",
        "--num-warmups",
        "2",
        "--isolated-ttft",
        "measure",
    ]
    with ScriptedServer(slow) as server:
        arguments = [
            "run",
            "--base-url",
            server.url,
            "--num-prompts",
            "12",
            "--input-len",
            "32",
            "--output-len",
            "2",
        ]
        assert (
            main(
                [
                    *arguments,
                    "--result-dir",
                    str(tmp_path / "r"),
                    "--quiet",
                    "--goodput",
                    "ttft:1000x",
                    *more,
                ]
            )
            == 0
        )
    result = result_of(tmp_path / "r")
    assert result["max_concurrency"] == 3
    assert result["classes"]["probe"]["requests"] >= 1
    assert result["attainment"] == 1.0
    assert result["p50_normalized_ttft"] > 0
    assert (
        json.loads((tmp_path / "r" / "isolated_ttft.json").read_text())["points"][0][0]
        == 32
    )


def test_objectives_are_sent_when_asked(tmp_path):
    with ScriptedServer() as server:
        assert (
            load(
                server,
                tmp_path / "a",
                "--goodput",
                "ttft:500",
                "tpot:50",
                "--send-objectives",
            )
            == 0
        )
        assert load(server, tmp_path / "b", "--goodput", "ttft:500") == 0
        sent = [
            call.request.headers.get("x-llm-d-slo-ttft-ms") for call in server.calls
        ]
    assert sent.count("500") == 13 or sent.count("500") == 12
    assert sent[-12:] == [None] * 12


def refuse_ids(call):
    return (
        call.error(400, "prompt must be a string")
        if isinstance(call.body.get("prompt"), list)
        else call.stream(call.whole(2))
    )


@pytest.mark.parametrize("tokenize", [True, False])
def test_text_prompts_where_ids_are_refused(tmp_path, tokenize):
    with ScriptedServer(refuse_ids, tokenize=tokenize) as server:
        assert (
            load(
                server,
                tmp_path / "r",
                "--fail-unhealthy",
                "--late-threshold-ms",
                "5000",
            )
            == 0
        )
        prompt = server.calls[-1].body["prompt"]
    assert isinstance(prompt, str)
    assert all(
        row["num_total_prompt_tokens"] == row["target_num_delta_prompt_tokens"]
        for row in rows_of(tmp_path / "r")
    )


def test_chat_counts_the_template(tmp_path):
    with ScriptedServer(lambda call: call.stream(call.whole(7))) as server:
        more = (
            "--endpoint",
            "/v1/chat/completions",
            "--fail-unhealthy",
            "--late-threshold-ms",
            "5000",
        )
        assert load(server, tmp_path / "r", *more) == 0
        assert "messages" in server.calls[-1].body


def test_secrets_stay_out_of_the_results(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "hush-1")
    with ScriptedServer() as server:
        assert load(server, tmp_path / "r", "--header", "x-secret=hush-2") == 0
        assert server.calls[-1].request.headers["Authorization"] == "Bearer hush-1"
        assert server.calls[-1].request.headers["x-secret"] == "hush-2"
    assert not [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and b"hush" in path.read_bytes()
    ]


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


def test_a_trace_with_shared_prefixes(tmp_path):
    rows = [
        {
            "timestamp": i,
            "input_length": 600,
            "output_length": 2,
            "hash_ids": [0, i + 1],
        }
        for i in range(3)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with ScriptedServer() as server:
        arguments = [
            "run",
            "--base-url",
            server.url,
            "--dataset-path",
            str(tmp_path / "t.jsonl"),
            "--quiet",
        ]
        assert (
            main(
                [
                    *arguments,
                    "--result-dir",
                    str(tmp_path / "r"),
                    "--scale-lengths",
                    "0.25",
                ]
            )
            == 0
        )
        prompts = [call.body["prompt"] for call in server.calls[1:]]
    assert {len(prompt) for prompt in prompts} == {150}
    assert len({tuple(prompt[:128]) for prompt in prompts}) == 1
    assert len({tuple(prompt[:129]) for prompt in prompts}) == 3


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
