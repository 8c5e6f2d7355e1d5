"""The command line: what is printed, and where."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clients.__main__ import describe, main, parse, read_prompt
from clients.errors import ApiError
from clients.events import Accepted, Finished, Progress, Resumed, Token, Usage
from clients.terminal import TextView
from tests.clients.conftest import streamed, whole

ANSWER = streamed(
    b': progress 1000/4000 tokens, 2.5 s left\n\ndata: {"choices":[{"text":"Hel"}]}\n\n'
    b'data: {"choices":[{"text":"lo","finish_reason":"length"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\ndata: [DONE]\n\n'
)


async def run(*arguments: str) -> tuple[int, str, str]:
    """medha-client in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "clients",
        *arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_prints_the_text_and_a_summary(serving) -> None:
    raw, _ = await serving(ANSWER)
    code, out, err = await run(
        "hi",
        "--base-url",
        raw.url,
        "--model",
        "m",
        "--completion",
        "--seed",
        "4",
        "--stop",
        "X",
    )
    assert (code, out) == (0, "Hello\n")
    assert "reading the prompt: 1,000 of 4,000 tokens, 2.5 s left\n" in err
    assert "3 -> 2 tokens, TTFT " in err
    assert "(due 0.500)" in err
    assert "(finished: length)" in err
    body = json.loads(raw.requests[0].split(b"\r\n\r\n")[1])
    assert (body["prompt"], body["seed"], body["stop"]) == ("hi", 4, ["X"])
    assert "temperature" not in body


async def test_json(serving) -> None:
    raw, _ = await serving(ANSWER)
    code, out, err = await run("hi", "--base-url", raw.url, "--model", "m", "--json")
    kinds = [json.loads(line)["type"] for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert kinds == ["accepted", "progress", "token", "token", "finished", "usage"]


async def test_failures_are_one_line_and_exit_code_1(serving) -> None:
    raw, _ = await serving(
        whole(429, b'{"error":{"message":"full"}}', b"retry-after: 3")
    )
    code, out, err = await run("hi", "--base-url", raw.url, "--model", "m")
    assert (code, out, err) == (
        1,
        "",
        "medha-client: the server says: full (HTTP 429); try again in 3 s\n",
    )
    code, out, err = await run("hi", "--base-url", "http://127.0.0.1:9")
    assert (code, out, err) == (
        1,
        "",
        "medha-client: no server at http://127.0.0.1:9: Connection refused\n",
    )


async def test_interrupt(serving) -> None:
    raw, _ = await serving(
        streamed(b'data: {"choices":[{"text":"Hel"}]}\n\n'), hang=True
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "clients",
        "hi",
        "--base-url",
        raw.url,
        "--model",
        "m",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await process.stdout.readexactly(3) == b"Hel"
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"\n")
    assert b"Traceback" not in err
    assert err.endswith(b"medha-client: interrupted\n")
    await raw.gone.wait()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_bar_on_a_terminal() -> None:
    out = io.StringIO()
    err = Terminal()
    view = TextView(out, err)
    view.show(Accepted())
    view.show(Progress(2000, 4000, 2.5))
    assert err.getvalue().startswith(
        "\r\x1b[K[###############...............] reading the prompt: 2,000 of"
    )
    view.show(Token("hi\n", 1.0))
    view.show(Token("there", 1.5))
    view.show(Token("other choice", 1.5, choice=1))
    view.show(Finished("stop", 2.0))
    view.show(Usage(4000, 3))
    view.close()
    assert out.getvalue() == "hi\nthere\n"
    assert err.getvalue().endswith(
        "\r\x1b[K4000 -> 3 tokens, TTFT 1.000 s, TPOT 500.0 ms, 2.000 s in all\n"
    )


def test_a_resumed_answer_does_not_look_broken_on_a_terminal() -> None:
    out = io.StringIO()
    err = Terminal()
    view = TextView(out, err)
    for event in (
        Accepted(),
        Token("Once", 1.0),
        Resumed(1, 2.0, 1),
        Token(" upon", 2.5),
    ):
        view.show(event)
    view.close()
    assert out.getvalue() == "Once upon\n"
    assert err.getvalue().startswith(
        "\n[the connection was cut; resumed after 1 tokens]\n"
    )
    assert err.getvalue().endswith(", cut and resumed: 1\n")


def test_an_answer_is_a_line_and_tells_the_id_that_trace_takes() -> None:
    for text, shown in (("hi", "hi\n"), ("hi\n", "hi\n"), ("", "\n")):
        out = io.StringIO()
        err = io.StringIO()
        view = TextView(out, err)
        view.show(Accepted("request", trace_id="0af7651916cd43dd8448eb211c80319c"))
        view.show(Token(text, 1.0))
        view.show(Finished("stop", 1.0))
        view.close()
        assert out.getvalue() == shown
        assert err.getvalue().endswith(", id 0af7651916cd43dd8448eb211c80319c\n")


def test_no_answer_is_no_line() -> None:
    out = io.StringIO()
    err = io.StringIO()
    view = TextView(out, err)
    view.show(Accepted(trace_id="7"))
    view.close()
    assert (out.getvalue(), err.getvalue()) == ("", "")


async def test_the_id_that_is_printed_is_the_servers(serving) -> None:
    head, _, body = ANSWER.partition(b"\r\n\r\n")
    raw, _ = await serving(head + b"\r\nx-medha-trace-id: 0af7651916\r\n\r\n" + body)
    _, _, err = await run("hi", "--base-url", raw.url, "--model", "m")
    assert ", id 0af7651916 (finished: length)\n" in err


def test_trace_without_an_id_is_helped(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["trace"])
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("usage: medha-client trace ")
    assert "x-medha-trace-id" in shown
    assert "--perfetto FILE" in shown


TIMELINE = {
    "id": "cmpl-a-b-0",
    "prompt_tokens": 3,
    "tokens": 0,
    "reason": None,
    "message": None,
    "ttft_s": None,
    "ttft_objective_s": 0.5,
    "tpot_s": None,
    "tpot_objective_s": 0.1,
    "missed": [],
    "arrived_at": 1.0,
    "queued_at": 1.1,
    "first_token_at": None,
    "last_token_at": None,
    "finished_at": None,
    "chunks": [],
    "gaps": [],
}
TIMELINES = json.dumps({"timelines": [TIMELINE]}).encode()


async def test_a_trace_whose_reader_has_gone_ends_quietly(serving) -> None:
    raw, _ = await serving(whole(200, TIMELINES))
    read, write = os.pipe()
    os.close(read)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "clients", "trace", "ID", "--base-url", raw.url),
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    _, err = await process.communicate()
    assert (process.returncode, err) == (1, b"")


async def test_a_trace_that_is_interrupted_is_one_line(serving) -> None:
    raw, _ = await serving(hang=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "clients", "trace", "ID", "--base-url", raw.url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    await raw.asked.wait()
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, out, err) == (130, b"", b"medha-client: interrupted\n")


async def test_a_trace_that_is_not_there_is_the_servers_word(serving) -> None:
    raw, _ = await serving(whole(404, b'{"error":{"message":"nobody of that name"}}'))
    code, out, err = await run("trace", "ID", "--base-url", raw.url)
    assert (code, out) == (1, "")
    assert err == "medha-client: the server says: nobody of that name (HTTP 404)\n"


async def test_the_address_needs_no_scheme(serving) -> None:
    raw, _ = await serving(ANSWER)
    address = raw.url.removeprefix("http://")
    code, out, _ = await run("hi", "--base-url", f"{address}/v1", "--model", "m")
    assert (code, out) == (0, "Hello\n")


def test_the_help_tells_what_every_flag_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for command in ([], ["trace"]):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        lines = capsys.readouterr().out.split("options:\n")[1].splitlines()
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            if line.startswith("  -"):  # its help stands beside it, or below
                assert "  " in line.strip() or following.startswith(" " * 10), line


def test_the_prompt_of_one_word_that_is_a_command() -> None:
    assert parse(["--", "trace"]).prompt == "trace"


def test_prompt_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("document")
    monkeypatch.setattr("sys.stdin", io.StringIO("question"))
    assert (
        read_prompt(parse(["-", "--file", str(tmp_path / "a.txt")]))
        == "document\n\nquestion"
    )
    assert main(["--file", str(tmp_path / "missing.txt")]) == 1
    for wrong in ([], ["x", "--chat", "--completion"], ["x", "--max-tokens", "many"]):
        with pytest.raises(SystemExit) as caught:
            main(wrong)
        assert caught.value.code == 2


def test_documents_that_cannot_be_read_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "picture").write_bytes(b"\x89PNG\xff")
    for name, reason in (
        ("missing", "No such file or directory"),
        ("", "Is a directory"),
        ("picture", "no text in UTF-8"),
    ):
        path = tmp_path / name
        assert main(["--file", str(path)]) == 1
        assert capsys.readouterr().err == f"medha-client: {path}: {reason}\n"


def test_errors_stay_on_one_line() -> None:
    assert describe(ApiError("a\nb", status=None)) == "the server says: a b"
