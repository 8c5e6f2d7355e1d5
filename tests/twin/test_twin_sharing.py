"""Shared beginnings in the twin: the product's cache finds what a real one would, no more."""

import json

import pytest
from msgspec.structs import replace
from twin_world import by_hand, deployment_of, request

from loadgen.__main__ import main
from loadgen.judge.metrics import measure_all
from loadgen.judge.options import Terms
from loadgen.records import UNSENT, Turn
from loadgen.show.compare import read_run
from loadgen.twin.clients import Clients
from loadgen.twin.commands.fidelity import compare, requests_of
from loadgen.twin.commands.prefix import at_rate
from loadgen.twin.hardware import hardware_of
from loadgen.twin.replay import play
from loadgen.workload.options import PaceOptions, WorkloadOptions
from loadgen.workload.plan import build_plan
from loadgen.workload.sharing import with_known
from medha_actors.core.simulator import token_of
from medha_actors.messages import unpack_tokens
from tests.loadgen.made import a_run

PAGE = 64


def blocks(index, at, ids, prompt=512, output=1):
    planned = request(prompt, output, at, index)
    return replace(planned, blocks=tuple(ids), block_tokens=128)


def prompts_of(requests, **more):
    clients = Clients(with_known(requests), **more)
    return [unpack_tokens(sent.prompt_token_ids) for sent in clients.start()]


def chats(**more):
    given = {
        "sessions": ("chat",),
        "num_sessions": 15,
        "turns": "2:6",
        "output_len": "10:60",
    }
    pace = PaceOptions(request_rate=more.pop("rate", 0.2))
    return build_plan(WorkloadOptions(**given | more), pace).requests


def played(requests, **more):
    return play(deployment_of(**more), requests).records


def test_equal_blocks_are_equal_tokens_and_nothing_else_is():
    one, two, three = prompts_of(
        [
            blocks(0, 0.0, (7, 8, 9), prompt=500),
            blocks(1, 1.0, (7, 8, 10), prompt=300),
            blocks(2, 2.0, (8,), prompt=200),
        ]
    )
    assert [len(one), len(two), len(three)] == [500, 300, 200]
    assert one[:256] == two[:256]
    assert not set(one[256:]) & set(two[256:])
    assert three[:128] == one[128:256]
    assert not set(three[128:]) & {*one, *two}


def test_hits_of_blocks_are_whole_pages_of_what_was_sent_before():
    load = with_known(
        [
            blocks(0, 0.0, (1, 2, 3, 4)),
            blocks(1, 100.0, (1, 2, 3, 4)),
            blocks(2, 200.0, (1, 2, 5, 6)),
            blocks(3, 300.0, (9, 2, 3, 4)),
        ]
    )
    records = played(load)
    assert [record.known_tokens for record in records] == [0, 512, 256, 0]
    assert [record.cached_tokens for record in records] == [0, 512 - PAGE, 256, 0]
    without = played(load, prefix_cache=False)
    assert [record.cached_tokens for record in without] == [0] * 4


def test_a_hit_saves_the_work_of_its_tokens():
    """A millisecond a token: 512 of them, then the 64 that are not cached."""
    load = with_known([blocks(0, 0.0, (1, 2, 3, 4)), blocks(1, 10.0, (1, 2, 3, 4))])
    first, second = play(by_hand("lars"), load).records
    assert first.token_times[0] == pytest.approx(0.512)
    assert second.token_times[0] - 10.0 == pytest.approx(0.064)


def test_a_workload_that_shares_nothing_stays_out_of_the_cache():
    records = played([request(200, 1, float(index), index) for index in range(3)])
    assert [record.cached_tokens for record in records] == [0, 0, 0]
    assert prompts_of([request(3, 1)]) == [[0, 0, 0]]


def test_a_turn_comes_after_the_answer_and_the_pause_with_all_that_was_said():
    requests = chats()
    sent = {}
    deployment = deployment_of()
    clients = Clients(requests)
    simulation = deployment.simulation(follow=clients.follow)
    logs = simulation.run(clients.start()).requests
    assert len(logs) == len(requests)
    for planned in requests:
        log = logs[f"{planned.kind}-{planned.index}"]
        prompt = unpack_tokens(log.request.prompt_token_ids)
        assert len(prompt) == planned.prompt_tokens
        sent[planned.index] = log
        if planned.after is None:
            continue
        before = sent[planned.after]
        answer = [
            token_of(before.request.id, index)
            for index in range(len(before.token_times))
        ]
        history = unpack_tokens(before.request.prompt_token_ids) + answer
        assert prompt[: len(history)] == history
        pause_s = log.request.arrived_at - before.finished.finished_at
        assert pause_s == pytest.approx(planned.turn.pause_s)


def test_without_a_shortage_of_room_sessions_hit_what_they_know_but_for_the_last_page():
    records = played(chats())
    assert all(record.completed for record in records)
    for record in records:
        assert record.known_tokens - PAGE < record.cached_tokens <= record.known_tokens
    assert {
        record.usage_prompt_tokens - record.prompt_tokens for record in records
    } == {0}


def test_warm_turns_are_sooner_with_the_cache():
    requests = chats()

    def median(**more):
        warm = [r for r in played(requests, **more) if r.turn.number]
        return sorted(r.token_times[0] - r.sent_at for r in warm)[len(warm) // 2]

    assert median() < 0.5 * median(prefix_cache=False)


def test_a_closed_loop_of_sessions_keeps_so_many_under_way():
    plan = build_plan(
        WorkloadOptions(
            sessions=("chat",), num_sessions=9, turns="3", max_model_len=8000
        ),
        PaceOptions(max_concurrency=2),
    )
    records = play(deployment_of(), plan.requests, concurrency=2).records
    assert all(record.completed for record in records)
    spans = {}
    for record in records:
        first, last = spans.get(record.turn.session, (record.sent_at, 0.0))
        spans[record.turn.session] = (
            min(first, record.sent_at),
            max(last, record.ended_at),
        )
    changes = sorted(
        [(at, 1) for at, _ in spans.values()] + [(at, -1) for _, at in spans.values()]
    )
    level = highest = 0
    for _, change in changes:
        level += change
        highest = max(highest, level)
    assert highest == 2


def test_turns_of_a_session_stay_on_their_replica():
    records = played(chats(), replicas=2)
    warm = [record for record in records if record.turn.number]
    assert all(record.cached_tokens > record.known_tokens - PAGE for record in warm)


def test_turns_after_one_that_is_refused_are_not_sent():
    turns = [
        replace(
            request(100 + 50_000 * number, 1, None if number else 0.0, number),
            after=number - 1 if number else None,
            turn=Turn(
                session=0,
                number=number,
                count=3,
                message_tokens=50_000 if number else 100,
            ),
        )
        for number in range(3)
    ]
    records = played(with_known(turns), max_model_len=32_768)
    assert [record.completed for record in records] == [True, False, False]
    assert records[1].status == 400
    assert records[2].error == UNSENT


def test_arrivals_are_scaled_to_a_rate():
    requests = chats(rate=1.0)
    sent = at_rate(requests, 4.0)
    assert max(r.at or 0.0 for r in sent) == pytest.approx(len(requests) / 4.0)
    assert [r.at is None for r in sent] == [r.at is None for r in requests]


SMALL = ["--model", "smollm2-135m", "--gpu", "cpu-2core", "--tpot-ms", "200"]
CHATS = [
    "--sessions",
    "chat",
    "--num-sessions",
    "6",
    "--turns",
    "2:4",
    "--max-model-len",
    "8000",
]


@pytest.mark.parametrize("off", [False, True])
def test_simulate_tells_warm_turns_from_cold_ones(tmp_path, capsys, monkeypatch, off):
    monkeypatch.setattr("loadgen.show.figures.available", lambda: False)
    arguments = ["simulate", *SMALL, *CHATS, "--request-rate", "0.2"]
    arguments += ["--no-prefix-cache"] if off else []
    assert main([*arguments, "--result-dir", str(tmp_path / "r")]) == 0
    result = json.loads((tmp_path / "r" / "result.json").read_text())
    assert {"cold", "warm"} <= result["classes"].keys()
    assert 0 < result["hit_bound"] < 1
    assert (
        result["hit_rate"] == 0
        if off
        else result["hit_rate"] > 0.8 * result["hit_bound"]
    )
    assert "Hit rate without bounds" in capsys.readouterr().out


def test_prefix_puts_cache_and_no_cache_side_by_side(tmp_path, capsys):
    arguments = [
        "prefix",
        *SMALL,
        *CHATS,
        "--loads",
        "0.5",
        "--result-dir",
        str(tmp_path / "p"),
    ]
    assert main(arguments) == 0
    written = json.loads((tmp_path / "p" / "prefix.json").read_text())
    off, on = written["outcomes"]
    assert (off["cache"], on["cache"]) == (False, True)
    assert off["hit_rate"] == 0
    assert 0 < on["hit_rate"] <= on["hit_bound"] == off["hit_bound"]
    assert on["warm"]["p50"] < off["warm"]["p50"]
    assert written["sustained"]["cached"] > written["sustained"]["without"]
    assert "hit rate" in capsys.readouterr().out
    assert (tmp_path / "p" / "prefix.md").read_text().startswith("| load |")


def test_prefix_needs_something_shared(capsys):
    assert main(["prefix", *SMALL, "--num-prompts", "5"]) == 2
    assert "nothing is shared" in capsys.readouterr().err


def test_fidelity_replays_sessions_and_blocks_with_their_hits(tmp_path, monkeypatch):
    """A record made by the twin: replayed at its instants, every hit is there again."""
    monkeypatch.setattr("loadgen.show.figures.available", lambda: False)
    arguments = ["simulate", *SMALL, *CHATS, "--request-rate", "0.2"]
    assert main([*arguments, "--result-dir", str(tmp_path / "r")]) == 0
    record = read_run(tmp_path / "r")
    requests = requests_of(record)
    assert [request.at is None for request in requests] == [False] * len(requests)
    replayed = played(requests, tpot_s=0.2)
    hits = sorted(request.record.cached_tokens for request in record.requests)
    assert sorted(again.cached_tokens for again in replayed) == hits
    assert sum(hits) > 0
    rows, within = compare(
        record.requests, measure_all(a_run(replayed), Terms().objectives)
    )
    assert within
    assert any(row[0] == "warm: TTFT P50" for row in rows)


def test_a_second_tier_brings_back_what_had_to_make_room():
    """Sessions in a device with room for a few of them, and host memory for all."""
    device = replace(hardware_of("h100"), memory_bytes=18.6e9)
    more = {"gpu": "h100", "model": "llama-3-8b"}
    small = replace(deployment_of(**more), device=device)
    assert small.kv_tokens < 8_000
    large = replace(small, host_bytes=10 * 10**9)
    assert large.grid().slots_per_group == 10 * 10**9 // (PAGE * 131_072)
    assert large.profile().stages[0].load_s == pytest.approx(
        PAGE * 131_072 / 64e9 / 0.8
    )
    requests = chats(num_sessions=25, rate=2.0)

    def hit_rate(deployment):
        records = play(deployment, requests).records
        assert all(record.completed for record in records)
        assert all(record.cached_tokens <= record.known_tokens for record in records)
        known = sum(record.known_tokens for record in records)
        return sum(record.cached_tokens for record in records) / known

    assert hit_rate(small) < 0.7
    assert hit_rate(large) > 0.9
