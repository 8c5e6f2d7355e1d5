"""What runs send, as their arguments ask, to a scripted server in a thread."""

import asyncio
import json

import pytest

from loadgen.__main__ import main
from tests.loadgen.commands import load, result_of, rows_of
from tests.loadgen.scripted import ScriptedServer

pytestmark = pytest.mark.usefixtures("plain")


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
