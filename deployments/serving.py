"""The server process of medha-serve: Serve's own `serve run`, the wait for SIGTERM, the end.

A server whose applications all fail to start ends by itself (deployments.starting).

The end: every controller drains while all routes still answer; then the applications are deleted,
so that the replicas have sent everything before the proxies go; then Serve and Ray stop.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve import scripts
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatusOverview

from deployments import starting
from medha_actors.errors import MedhaError

_LOOK_S = 0.5
# a living controller answers so long after its time limit at the latest
_ANSWER_S = 10.0
# before another try: replicas hand their live requests to a new controller
_RETURN_S = 2.0


def main(path: str, timeout_s: float) -> int:
    """Serve a configuration until SIGTERM, or until the process that started this one is gone; then
    what is in flight has `timeout_s` to finish. Returns the exit status: 1 if nothing came up."""
    parent = os.getppid()
    try:
        scripts.run.main([path, "--non-blocking"], standalone_mode=False)
    except SystemExit:  # `serve run` has said why
        return 1
    stopped = threading.Event()
    # Ray has set its own
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.set())
    failures = _wait(stopped, parent)
    if failures:
        for failure in failures:
            _say(failure)
        _stop()
        return 1
    _say(
        f"stopping; requests in flight have {timeout_s:g} s to finish (Ctrl-C: end at once)"
    )
    unfinished = drain(timeout_s)
    _say(
        f"{unfinished} requests ended with an error"
        if unfinished
        else "no request was cut"
    )
    _stop()
    return 0


def _wait(stopped: threading.Event, parent: int) -> list[str]:
    """Until it is to stop, or nothing has come up: then the reasons."""
    serves = False
    while not stopped.wait(_LOOK_S) and os.getppid() == parent:
        if serves:
            continue
        applications = _applications()
        serves = starting.serves(applications)
        failures = starting.failures(applications)
        if failures:
            return failures
    return []


def _applications() -> dict[str, ApplicationStatusOverview]:
    """What Serve says of them; empty while it says nothing."""
    try:
        return serve.status().applications
    except (RayError, TimeoutError):
        return {}


def drain(timeout_s: float) -> int:
    """Let every application finish what is in flight; returns how many requests were not finished.

    A replica passes it on to the controller: this process then needs neither torch nor the model.
    """
    until = time.monotonic() + timeout_s
    applications = serve.status().applications
    names = [
        name for name, status in applications.items() if starting.has_replica(status)
    ]
    if not names:
        return 0
    with ThreadPoolExecutor(len(names)) as threads:
        return sum(threads.map(lambda name: _drain_application(name, until), names))


def _drain_application(name: str, until: float) -> int:
    """Ask again where the replica or the controller dies meanwhile: a new one knows nothing."""
    while True:
        remaining_s = max(0.0, until - time.monotonic())
        try:
            handle = serve.get_app_handle(name)
            return int(
                handle.drain.remote(remaining_s).result(
                    timeout_s=remaining_s + _ANSWER_S
                )
            )
        except (RayError, RayServeException, TimeoutError, MedhaError) as error:
            if remaining_s == 0.0:
                _say(f"{name} did not drain: {error}")
                return 0
            time.sleep(_RETURN_S)


def _stop() -> None:
    """Replicas first, then the proxies, then Ray."""
    try:
        for name in serve.status().applications:
            serve.delete(name)
    except (RayError, TimeoutError) as error:
        _say(f"Serve did not let its replicas go in time: {error}")
    serve.shutdown()
    ray.shutdown()


def _say(text: str) -> None:
    print(f"medha: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], float(sys.argv[2])))
