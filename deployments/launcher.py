"""medha-serve: `serve run` that stops well.

Two processes. This one holds the terminal and takes the signals; the other one
(deployments.serving) runs Ray and Serve in a session of its own, so that a signal to this process
group reaches neither Ray nor the proxy while they are needed to finish what is in flight. When the
other one has ended, whatever is left of its session is ended too: a proxy that outlived its parents
would hold the port.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import psutil

from deployments import haproxy
from deployments.catalogue import catalogue_of
from deployments.keys import load_keys
from medha_actors.errors import ConfigError

# Unless the user has set them. Serve's own health-check periods are 10 s, and a dead
# proxy is replaced after three failed checks.
DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # Around every HTTP server of Ray Serve: our error objects, and headers that Serve can read.
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "deployments.edge:middlewares",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",
    "RAY_SERVE_DEPLOYMENT_ACTOR_HEALTH_CHECK_PERIOD_S": "0.25",
    # How long a replica waits for load balancers in front of it to notice (30 by
    # default); there is none here but Serve's proxy, which is told.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}
# Ports that a second server on this host must have elsewhere: HAProxy's own pages, and
# the Python proxy that it falls back to while no replica is up (two of them would share
# the port, and each would answer for the other's models).
PORTS = {
    "RAY_SERVE_HAPROXY_METRICS_PORT": 9101,
    "RAY_SERVE_HAPROXY_STATS_PORT": 8404,
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": 8500,
}
_OWN_HAPROXY = "RAY_SERVE_HAPROXY_BINARY_PATH"
_APPLICATION = "deployments.app:build_app"
_LEAVE_S = 10.0  # Ray's processes end by themselves in this time
_LOOK_S = 0.2


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The environment of the server: what is given, and our defaults for the rest."""
    ports = {
        name: str(free_port(port)) for name, port in PORTS.items() if name not in given
    }
    proxy = {} if _OWN_HAPROXY in given else haproxy.environment()
    return {**DEFAULTS, **proxy, **ports, **given}


def free_port(wanted: int) -> int:
    """This port, or any other one if something listens there."""
    for port in (wanted, 0):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
            return int(probe.getsockname()[1])
    return wanted


def drain_timeout_s(path: Path) -> float:
    """The longest time that an application of ours in this configuration wants; raises ConfigError
    for what is wrong in its args, or with its API keys."""
    try:
        config = msgspec.yaml.decode(path.read_bytes(), type=dict[str, Any])
        applications = [
            dict(application) for application in config.get("applications") or []
        ]
    except OSError as error:
        raise ConfigError(error.strerror or str(error)) from None
    except (msgspec.DecodeError, TypeError, ValueError) as error:
        raise ConfigError(f"is no Serve configuration: {error}") from None
    ours = [app for app in applications if app.get("import_path") == _APPLICATION]
    catalogues = [catalogue_of(app.get("args") or {}) for app in ours]
    for catalogue in catalogues:
        for entry in catalogue.entries:
            load_keys(entry.config.api_keys)
    return max([catalogue.drain_timeout_s for catalogue in catalogues], default=0.0)


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="medha-serve",
        description="Serve a model. SIGTERM or Ctrl-C: finish what is in flight (drain_timeout_s), "
        "then stop. Ctrl-C again: stop at once.",
    )
    parser.add_argument(
        "config", type=Path, help="a Serve configuration, e.g. serve_config.yaml"
    )
    options = parser.parse_args(arguments)
    try:
        timeout_s = drain_timeout_s(options.config)
    except ConfigError as error:
        parser.exit(1, f"{options.config}: {error.message}\n")

    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _: signals.put(received))
    server = subprocess.Popen(
        [sys.executable, "-m", "deployments.serving", options.config, str(timeout_s)],
        env=environment(os.environ),
        start_new_session=True,
    )
    try:
        return _watch(server, signals)
    finally:
        _end_session(server.pid)
        server.wait()


def _watch(server: subprocess.Popen[bytes], signals: queue.SimpleQueue[int]) -> int:
    """Pass the first signal on; a Ctrl-C after it hurries. Another SIGTERM does not: `make`, for
    one, repeats what its process group has had already."""
    stopping = False
    while server.poll() is None:
        try:
            number = signals.get(timeout=_LOOK_S)
        except queue.Empty:
            continue
        if not stopping:
            stopping = True
            server.send_signal(signal.SIGTERM)
        elif number == signal.SIGINT:
            _kill(_session(server.pid))
            return 128 + signal.SIGINT
    return 0 if stopping else server.returncode or 0


def _session(leader: int) -> list[psutil.Process]:
    """The living processes of a session, also those whose parents have ended."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            if (
                os.getsid(process.pid) == leader
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                members.append(process)
    return members


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def _end_session(leader: int) -> None:
    """Until nothing of it is left: what does not go by itself is killed."""
    began = time.monotonic()
    while members := _session(leader):
        waited_s = time.monotonic() - began
        if waited_s > 2 * _LEAVE_S:
            print(f"medha: still there: {members}", file=sys.stderr)
            return
        if waited_s > _LEAVE_S:
            _kill(members)
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    sys.exit(main())
