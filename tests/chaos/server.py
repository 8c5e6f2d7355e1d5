"""A real server to do harm to: its URL, its processes, its figures."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil
from prometheus_client.parser import text_string_to_metric_families

from medha_actors.config import load
from tests.chaos import census
from tests.system.serve_process import serving, shipped_args

_SETTLE_S: Final = 90.0
_LOOK_EVERY_S: Final = 0.25


class NotSettledError(Exception):
    """The server does not come to rest: it is not whole again, or still works."""


class Server:
    """A running server. `session`: the id that all its processes share; `args`: its
    configuration."""

    def __init__(self, url: str, session: int, args: dict[str, Any]) -> None:
        self.url = url
        self.session = session
        config = load(args)
        self.model = config.model_loading_config.model_id
        grid = config.parallel.spp * config.parallel.kvp * config.parallel.tp
        self._wanted = {
            "stage": grid + config.actors.spares,
            "scheduler": 1,
            "ingress": config.deployment_config["num_replicas"],
        }

    def census(self) -> list[census.Process]:
        return census.processes(self.session)

    def metrics(self) -> dict[tuple[str, str], float]:
        """GET /metrics: values by name and by what tells the samples apart (a replica, a state, or
        nothing). Raises OSError."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        values: dict[tuple[str, str], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                label = sample.labels.get("replica") or sample.labels.get("state") or ""
                key = (sample.name, label)
                values[key] = values.get(key, 0.0) + sample.value
        return values

    def rebuilds(self) -> int:
        """How often the pipeline was mended since its controller began."""
        return int(self.metrics()["medha_pipeline_rebuilds_total", ""])

    def settle(self) -> list[census.Process]:
        """Wait until nothing is in flight and every actor is there; the processes then.

        Raises NotSettledError."""
        until = time.monotonic() + _SETTLE_S
        while time.monotonic() < until:
            alive = self.census()
            if self._complete(alive) and self._idle():
                return alive
            time.sleep(_LOOK_EVERY_S)
        raise NotSettledError(f"not at rest after {_SETTLE_S:g} s: {self._roles()}")

    def _complete(self, alive: list[census.Process]) -> bool:
        return all(
            len(census.pids(alive, role)) == count
            for role, count in self._wanted.items()
        )

    def _idle(self) -> bool:
        try:
            values = self.metrics()
        except (OSError, ValueError):
            return False
        names = ("running", "prefilling", "waiting")
        counts = [values.get((f"medha_num_requests_{name}", ""), 1.0) for name in names]
        return values.get(("medha_engine_up", "")) == 1.0 and not any(counts)

    def _roles(self) -> str:
        alive = self.census()
        return ", ".join(
            [f"{role} {len(census.pids(alive, role))}" for role in self._wanted]
        )


@contextlib.contextmanager
def running(folder: Path, replicas: int = 1, **args: Any) -> Iterator[Server]:
    """The shipped configuration with changed `args` on a free port; its output goes to serve.log
    in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    sections = {
        **shipped_args(),
        **args,
        "deployment_config": {"num_replicas": replicas},
    }
    session = 0
    try:
        with serving(folder, **sections) as (url, launcher):
            [server] = psutil.Process(launcher).children()
            session = server.pid
            yield Server(url, session, sections)
    finally:
        if session:
            _end(session)


def _end(session: int) -> None:
    """Kill what the server has left behind, and say so."""
    for process in census.processes(session):
        print(
            f"left behind by the server: {process.role} {process.pid}", file=sys.stderr
        )
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
