"""Sessions as they are sent: when, and with which history."""

import asyncio
import json

import pytest

from loadgen.__main__ import main
from loadgen.records import UNSENT, PlannedRequest, Turn, open_record
from loadgen.send.alphabet import WORDS
from loadgen.send.driver import Driver, Pace
from loadgen.send.prompts import PromptMaker, text_alphabet
from loadgen.send.talks import Talks
from tests.loadgen.commands import error_line, load, result_of, rows_of
from tests.loadgen.scripted import DONE, ScriptedServer, event
from tests.loadgen.send.test_load_driver import SlowTarget, drive, rounded
from tests.loadgen.virtual_time import run_virtually


def session(number, first_index, at, pauses, tokens=2):
    """A session of turns whose answers take two seconds each."""
    turns = []
    for turn, pause_s in enumerate((0.0, *pauses)):
        turns.append(
            PlannedRequest(
                index=first_index + turn,
                at=None if turn else at,
                prompt_tokens=tokens * (turn + 1),
                output_tokens=1,
                after=first_index + turn - 1 if turn else None,
                turn=Turn(
                    session=number,
                    number=turn,
                    count=1 + len(pauses),
                    message_tokens=tokens,
                    pause_s=pause_s,
                ),
            )
        )
    return turns


def test_sessions_come_on_time_and_turns_follow_their_answers():
    plan = session(0, 0, 1.0, (3.0, 0.5)) + session(1, 3, 2.0, (10.0,))
    driver, duration = drive(plan, target=SlowTarget(seconds=2))
    sent = {record.index: round(record.sent_at, 6) for record in driver.records}
    assert sent == {0: 1.0, 3: 2.0, 1: 6.0, 2: 8.5, 4: 14.0}
    late = [record.sent_at - record.scheduled_at for record in driver.records]
    assert rounded(late) == [0] * 5
    assert round(duration, 6) == 16.0


def test_a_closed_loop_keeps_so_many_sessions_under_way():
    plan = []
    for number in range(4):
        plan += session(number, 2 * number, None, (1.0,))
    driver, _ = drive(
        plan, Pace(closed_loop=True, max_concurrency=2), SlowTarget(seconds=2)
    )
    sent = {record.index: round(record.sent_at, 6) for record in driver.records}
    assert sent == {0: 0, 2: 0, 1: 3, 3: 3, 4: 5, 6: 5, 5: 8, 7: 8}


def test_turns_after_a_failed_one_fail_unsent():
    class Failing(SlowTarget):
        def _end(self, record, done):
            record.error = "HTTP 500" if record.index == 1 else None
            super()._end(record, done)

    plan = session(0, 0, 0.0, (1.0, 1.0, 1.0)) + session(1, 4, 0.0, (1.0,))
    for pace in (Pace(), Pace(closed_loop=True, max_concurrency=1)):
        driver, _ = drive(plan, pace, target=Failing(seconds=2))
        errors = {record.index: record.error for record in driver.records}
        assert errors == {
            0: None,
            1: "HTTP 500",
            2: UNSENT,
            3: UNSENT,
            4: None,
            5: None,
        }
        assert all(
            record.sent_at is None
            for record in driver.records
            if record.error == UNSENT
        )


@pytest.mark.parametrize("pace", [Pace(), Pace(closed_loop=True, max_concurrency=1)])
def test_stopping_in_a_pause_ends_the_run(pace):
    async def main():
        loop = asyncio.get_running_loop()
        plan = session(0, 0, 0.0, (100.0,))
        driver = Driver(SlowTarget(seconds=2), plan, pace, clock=loop.time)
        loop.call_later(50.0, driver.stop)
        await driver.run()
        return driver, loop.time()

    driver, ended_at = run_virtually(main)
    assert [record.completed for record in driver.records] == [True]
    assert round(ended_at - 1000.0, 6) == 50.0


def test_a_prompt_that_cannot_be_made_ends_the_run():
    def refuse(request):
        if request.turn.number:
            raise RuntimeError("no words left")

    with pytest.raises(RuntimeError, match="no words left"):
        drive(session(0, 0, 0.0, (1.0,)), target=SlowTarget(2, prepare_hook=refuse))


def answered(talks, request, text):
    record = open_record(request, "run")
    record.answer.append(text)
    record.ended_at = 1.0
    talks.answered(record, request.turn)
    return record


@pytest.mark.parametrize("chat", [False, True])
def test_the_next_prompt_is_the_history_word_for_word(chat):
    talks = Talks(PromptMaker(text_alphabet(WORDS), 0), chat)
    first, second, third = session(0, 0, 0.0, (1.0, 1.0), tokens=20)
    said = []
    for request, answer in ((first, ' a "quote"\n'), (second, "é"), (third, "end")):
        said.append(json.loads(b"{%b}" % talks.prompt(request, request.turn)))
        answered(talks, request, answer)
    if chat:
        roles = [message["role"] for message in said[2]["messages"]]
        assert roles == ["user", "assistant", "user", "assistant", "user"]
        assert said[2]["messages"][:3] == said[1]["messages"]
        assert said[1]["messages"][1]["content"] == ' a "quote"\n'
        message = said[2]["messages"][-1]["content"]
    else:
        assert said[1]["prompt"].startswith(said[0]["prompt"] + ' a "quote"\n')
        assert said[2]["prompt"].startswith(said[1]["prompt"] + "é")
        message = said[2]["prompt"].removeprefix(said[1]["prompt"] + "é")
    assert len(message.split()) == 20
    with pytest.raises(KeyError):  # nothing is kept of a session that is over
        talks.prompt(third, third.turn)


def test_sessions_of_a_kind_begin_with_the_same_words():
    plans = [
        PlannedRequest(
            index=index,
            prompt_tokens=50,
            output_tokens=1,
            blocks=(-1,),
            block_tokens=30,
            turn=Turn(session=index, number=0, count=1, message_tokens=20),
        )
        for index in range(2)
    ]
    talks = Talks(PromptMaker(text_alphabet(WORDS), 0), chat=False)
    one, two = (
        json.loads(b"{%b}" % talks.prompt(plan, plan.turn))["prompt"].split()
        for plan in plans
    )
    assert one[:30] == two[:30]
    assert one[30:] != two[30:]


CHATS = (
    "--sessions",
    "chat",
    "--num-sessions",
    "4",
    "--turns",
    "3",
    "--system-len",
    "64",
)
QUICK = (
    "--pause-ms",
    "5",
    "--input-len",
    "20:40",
    "--output-len",
    "3",
    "--request-rate",
    "200",
)


def usage_with_cache(call, cached):
    counts = {
        "prompt_tokens": call.prompt_tokens,
        "completion_tokens": call.max_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return b"data: " + json.dumps({"choices": [], "usage": counts}).encode() + b"\n\n"


class CachingServer(ScriptedServer):
    """Has cached all words but the last 40 of every prompt that continues an earlier one."""

    def __init__(self):
        self.ended = []
        super().__init__(self.caching, tokenize=True)

    async def caching(self, call):
        prompt = call.body["prompt"]
        known = [text for text in self.ended if prompt.startswith(text)]
        cached = len(max(known, key=len).split()) if known else 0
        pieces = [event(" x") for _ in range(call.max_tokens)]
        await call.stream(*pieces, usage_with_cache(call, cached), DONE)
        self.ended.append(prompt + " x" * call.max_tokens)


@pytest.mark.usefixtures("plain")
def test_a_run_of_sessions(tmp_path, capsys):
    arguments = ["run", *CHATS, *QUICK, "--result-dir", str(tmp_path / "r"), "--quiet"]
    with CachingServer() as server:
        assert main([*arguments, "--base-url", server.url]) == 0
    result = result_of(tmp_path / "r")
    rows = rows_of(tmp_path / "r")
    assert (result["completed"], result["health"]) == (12, "PASSED")
    assert set(result["classes"]) == {"all", "short", "cold", "warm"}
    assert result["classes"]["warm"]["requests"] >= 8  # all but first turns
    assert {"p50", "p90", "p99"} <= result["classes"]["warm"]["ttft"].keys()
    warm = [row for row in rows if row["turn"]]
    assert all(row["cached_tokens"] == row["known_tokens"] + 1 for row in warm)
    assert result["hit_rate"] == pytest.approx(
        sum(row["cached_tokens"] for row in rows)
        / sum(r["num_total_prompt_tokens"] for r in rows)
    )
    assert result["hit_bound"] == pytest.approx(
        sum(row["known_tokens"] for row in rows)
        / sum(r["num_total_prompt_tokens"] for r in rows)
    )
    assert {row["session_id"] for row in rows} == {0, 1, 2, 3}
    assert {row["session_total_requests"] for row in rows} == {3}
    out = capsys.readouterr().out
    assert "Hit rate without bounds" in out


@pytest.mark.usefixtures("plain")
def test_sessions_cannot_send_ids(tmp_path, capsys):
    with ScriptedServer() as server:
        arguments = ["run", *CHATS, "--base-url", server.url, "--prompt-format", "ids"]
        assert main([*arguments, "--result-dir", str(tmp_path / "r")]) == 2
    assert "--sessions send text" in error_line(capsys)


@pytest.mark.usefixtures("plain")
def test_a_server_that_is_warm_from_elsewhere_is_noticed(tmp_path):
    async def all_cached(call):
        pieces = [event() for _ in range(call.max_tokens)]
        await call.stream(*pieces, usage_with_cache(call, call.prompt_tokens - 1), DONE)

    with ScriptedServer(all_cached) as server:
        assert load(server, tmp_path / "r") == 0
    assert result_of(tmp_path / "r")["health"] == "FAILED"
    assert (
        "warm from an earlier run"
        in (tmp_path / "r" / "health_check_results.txt").read_text()
    )
