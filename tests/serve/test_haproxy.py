"""medha-haproxy: what HAProxy says by itself, with a configuration in the form of Serve's."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from deployments import haproxy

CONFIGURATION = """defaults
    mode http
    timeout connect 1s
    timeout client 10s
    timeout server 10s
    option abortonclose
    errorfile 503 {folder}/500.http
frontend http_frontend
    bind fd@{listener}
{routes}
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path '%[path]' not found."
{backends}
"""
SERVES_500 = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
# an application at /app whose replica cannot be reached
ROUTES = "    use_backend http-app if { path_beg /app/ }"
BACKENDS = "backend http-app\n    server gone 127.0.0.1:{port}"


@contextmanager
def running(folder: Path, routes: str = "", backends: str = "") -> Iterator[str]:
    """Its URL: a HAProxy that listens before it has started."""
    (folder / "500.http").write_bytes(SERVES_500)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        values = {"folder": folder, "routes": routes, "backends": backends}
        path = folder / "haproxy.cfg"
        path.write_text(CONFIGURATION.format(listener=listener.fileno(), **values))
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.haproxy", "-db", "-f", path],
            env={**os.environ, **haproxy.environment()},
            pass_fds=[listener.fileno()],
        )
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            process.terminate()
            process.wait()


def unused_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def check_come_back(answer: httpx.Response) -> None:
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["message"] == "the application is being started"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/models", 503),
        ("/v1/chat/completions", 503),
        ("/v1/messages", 529),
        ("/x", 503),
    ],
)
def test_before_there_is_an_application_everybody_is_asked_to_come_back(
    tmp_path: Path, path: str, status: int
):
    with running(tmp_path) as url:
        answer = httpx.get(url + path)
        assert answer.status_code == status
        check_come_back(answer)


def test_beside_another_application_only_our_paths_are(tmp_path: Path):
    backends = BACKENDS.format(port=unused_port())
    with running(tmp_path, ROUTES, backends) as url:
        check_come_back(httpx.post(f"{url}/other/v1/completions"))
        assert httpx.get(f"{url}/other/x").status_code == 404


def test_an_application_without_a_replica_is_503(tmp_path: Path):
    backends = BACKENDS.format(port=unused_port())
    with running(tmp_path, ROUTES, backends) as url:
        answer = httpx.get(f"{url}/app/v1/models")
        assert answer.status_code == 503
        check_come_back(answer)


@pytest.mark.parametrize("status", [400, 408, 503])
def test_an_answer_of_ours_is_as_long_as_it_says(status: int):
    added = haproxy.add_errors("    option abortonclose\n    errorfile 503 theirs")
    (line,) = [line for line in added.split("\n") if f"errorfile {status} " in line]
    head, _, body = Path(line.split()[2]).read_bytes().partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body)["error"]["message"]


def test_another_form_of_configuration_stays_as_it_is():
    assert haproxy.add_errors("another form") == "another form"
