"""The real thing: `medha-serve` with a real configuration, as a user starts it, and requests over
HTTP."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest

from deployments.launcher import PORTS

EDGE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
STEADY = 5  # good answers in a row, 0.25 s apart
ROOT = Path(__file__).parent.parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def own_ports() -> dict[str, str]:
    """Ports that no server wants which starts beside this one."""
    return {name: str(free_port()) for name in PORTS}


@contextmanager
def serving(
    folder: Path,
    tracing_config: dict | None = None,
    environment: dict[str, str] | None = None,
    **args,
) -> Iterator[tuple[str, int]]:
    """A running server with these `args` (and Serve's own tracing), and these variables in its
    environment; yields its base URL and its process."""
    path = folder / "serve_config.yaml"
    url = write_config(path, free_port(), tracing_config, **args)
    log = (folder / "serve.log").open("w+")
    server = launch(path, log, environment)
    try:
        edged = (environment or {}).get(EDGE) != ""
        wait_until_ready(url, server, log, edged=edged)
        yield url, server.pid
    finally:
        end(server)
        log.close()


def launch(
    path: Path, log: TextIO, environment: dict[str, str] | None = None
) -> subprocess.Popen:
    """`medha-serve` with this configuration, which writes there."""
    return subprocess.Popen(
        [sys.executable, "-m", "deployments.launcher", path],
        cwd=ROOT,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={
            **os.environ,
            "RAY_ADDRESS": "local",
            **own_ports(),
            **(environment or {}),
        },
        start_new_session=True,
    )


def end(server: subprocess.Popen) -> None:
    """Ctrl-C, and once more if that takes long."""
    for _ in range(2):
        server.send_signal(signal.SIGINT)
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            continue
        return
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def write_config(
    path: Path, port: int, tracing_config: dict | None = None, **args
) -> str:
    """A configuration with these `args`; returns the URL at which it will be served."""
    config = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "medha",
                "route_prefix": "/",
                "import_path": "deployments.app:build_app",
                "args": args,
            }
        ],
    }
    if tracing_config is not None:
        config["tracing_config"] = tracing_config
    path.write_text(json.dumps(config))  # JSON is YAML
    return f"http://127.0.0.1:{port}"


def deploy(config: Path, url: str, log: Path, **args) -> None:
    """`serve deploy` of the same application with other `args`, to the server that writes this log;
    returns before it is done."""
    write_config(config, int(url.rpartition(":")[2]), **args)
    found = re.search(r"dashboard at \S*?(http://[\d.:]+)", log.read_text())
    assert found is not None
    command = [
        Path(sys.executable).parent / "serve",
        "deploy",
        "--address",
        found.group(1),
        config,
    ]
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}  # as a local Ray has it
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def wait_until_ready(
    url: str, server: subprocess.Popen, log, limit_s: float = 120, edged: bool = True
) -> None:
    """Until it says so, and its answers have been good for a second, since HAProxy is started anew
    for the first replica. With the edge nobody may be told meanwhile that a path is not there."""
    deadline = time.monotonic() + limit_s
    good = 0
    while good < STEADY or "is ready at" not in Path(log.name).read_text():
        if server.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            pytest.fail(f"the server did not come up:\n{log.read()[-4000:]}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                good = good + 1 if answer.status == 200 else 0
        except urllib.error.HTTPError as refusal:
            good = 0
            if edged and refusal.code == 404:
                pytest.fail("the server knew no /health while it started")
        except OSError:
            good = 0
        server_poll_pause(server)


def server_poll_pause(server: subprocess.Popen) -> None:
    """Wait a moment for the server process (which is not expected to end)."""
    try:
        server.wait(timeout=0.25)
    except subprocess.TimeoutExpired:
        return


def shipped_args() -> dict:
    import yaml

    return yaml.safe_load((ROOT / "serve_config.yaml").read_text())["applications"][0][
        "args"
    ]
