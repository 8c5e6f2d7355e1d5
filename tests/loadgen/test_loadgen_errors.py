"""Whatever the user got wrong is one clear line and a non-zero exit, before anything is loaded."""

import socket
import threading
import time

import pytest

from tests.loadgen.commands import error_line, load
from tests.loadgen.scripted import ScriptedServer

pytestmark = pytest.mark.usefixtures("plain")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_server_down(tmp_path, capsys):
    assert load(f"http://127.0.0.1:{free_port()}", tmp_path / "r") == 2
    assert "no server answers at http://127.0.0.1" in error_line(capsys)
    assert not (tmp_path / "r").exists()


def test_something_else_than_http(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet():
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"SSH-2.0-OpenSSH_9\r\n\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        assert (
            load(f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path / "r") == 2
        )
        thread.join()
    assert "no HTTP server answers" in error_line(capsys)


def test_waits_for_a_server_that_is_coming_up(tmp_path):
    port = free_port()
    began = time.monotonic()
    assert (
        load(
            f"http://127.0.0.1:{port}",
            tmp_path / "r",
            "--ready-check-timeout-sec",
            "0.05",
        )
        == 2
    )
    assert time.monotonic() - began >= 0.05


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--model", "gpt-9"), "has no model 'gpt-9'; it has scripted"),
        (("--max-model-len", "10"), "no request fits in 10 tokens"),
        (("--dataset-path", "none.jsonl"), "none.jsonl: No such file"),
        (("--goodput", "ttft:1.5x"), "need --isolated-ttft"),
        (("--goodput", "itl:5"), "--goodput itl:5"),
        (("--input-len", "many"), "'many' is no length"),
        (("--metric-percentiles", "50,101"), "--metric-percentiles"),
        (("--header", "novalue"), "--header novalue"),
        (("--token-ids", "9:1"), "--token-ids 9:1"),
        (
            ("--endpoint", "/v1/chat/completions", "--prompt-format", "ids"),
            "--prompt-format ids needs",
        ),
        (("--tokenizer", "none", "--prompt-format", "text"), "there is no none"),
        (("--tokenizer", "none"), "there is no none; give a tokenizer.json"),
        (
            ("--tokenizer", ".", "--prompt-format", "ids"),
            "there is no tokenizer.json; give",
        ),
        (("--isolated-ttft", "none.json"), "cannot read none.json"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, capsys, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    with ScriptedServer() as server:
        assert load(server, tmp_path / "r", *more) == 2
    assert message in error_line(capsys)
    assert not (tmp_path / "r").exists()


def test_wrong_url_and_empty_trace_and_existing_directory(tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "result.json").write_text("{}")
    with ScriptedServer(max_model_len=50) as server:
        assert load(server.url + "/other", tmp_path / "r") == 2
        assert "no list of models: is --base-url right?" in error_line(capsys)
        assert load("ftp://x", tmp_path / "r") == 2
        assert "write http://HOST:PORT" in error_line(capsys)
        assert (
            load(
                server, tmp_path / "r", "--dataset-path", str(tmp_path / "empty.jsonl")
            )
            == 2
        )
        assert "the trace is empty" in error_line(capsys)
        assert load(server, tmp_path / "full") == 2
        assert "full exists already" in error_line(capsys)
        assert load(server, tmp_path / "r", "--input-len", "99") == 2
        assert "the model takes 50: use --max-model-len 50" in error_line(capsys)
        assert server.calls == []


def test_a_refused_trial_request(tmp_path, capsys):
    with ScriptedServer(lambda call: call.error(401, "who are you?")) as server:
        assert load(server, tmp_path / "r", "--prompt-format", "ids") == 2
    assert "refused a trial request: HTTP 401: who are you?" in error_line(capsys)
