"""All processes of one server, by role: who they are and what they hold."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec
import psutil

# The beginning of a command line, and what the process is. Ray names a process after
# its actor, and adds the method that runs.
_ROLES: Final = (
    ("ray::StageActor", "stage"),
    ("ray::SchedulerActor", "scheduler"),
    ("ray::ServeReplica:", "ingress"),
    ("ray::ServeController", "serve controller"),
    ("ray::ProxyActor", "proxy"),
    ("ray::HAProxyManager", "haproxy manager"),
    ("ray::IDLE", "idle worker"),
    ("ray::DashboardAgent", "ray agent"),
    ("ray::RuntimeEnvAgent", "ray agent"),
    ("ray::", "other worker"),
    ("ray-dashboard", "dashboard"),
)
_PROGRAMS: Final = {
    "haproxy": "haproxy",
    "raylet": "raylet",
    "gcs_server": "gcs",
    "serve": "serve",
}
OTHER: Final = "other"
LOG_MONITOR: Final = "log monitor"


class Process(msgspec.Struct, frozen=True):
    """One process at one moment."""

    pid: int
    role: str
    resident_bytes: int
    descriptors: int
    threads: int
    cpu_s: float = 0.0  # since it began


def role_of(name: str, command: list[str]) -> str:
    """What a process is; `name` as the kernel knows it."""
    title = command[0] if command else ""
    for beginning, role in _ROLES:
        if title.startswith(beginning):
            return role
    whole = " ".join(command)
    if "log_monitor.py" in whole:
        return LOG_MONITOR
    if "dashboard" in whole:
        return "dashboard"
    return _PROGRAMS.get(name, OTHER)


def processes(session: int) -> list[Process]:
    """Every process of a session: a server started with `start_new_session` and all that came of
    it, also what has lost its parent. Sorted by role and pid."""
    alive: list[Process] = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) != session:
                continue
            with process.oneshot():
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                alive.append(
                    Process(
                        pid=process.pid,
                        role=role_of(process.name(), process.cmdline()),
                        resident_bytes=process.memory_info().rss,
                        descriptors=process.num_fds(),
                        threads=process.num_threads(),
                        cpu_s=sum(process.cpu_times()[:2]),
                    )
                )
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue  # it has ended meanwhile
    return sorted(alive, key=lambda process: (process.role, process.pid))


def pids(among: Iterable[Process], role: str) -> list[int]:
    """Of the processes with this role."""
    return [process.pid for process in among if process.role == role]


def victims(before: Iterable[Process], now: Iterable[Process], role: str) -> list[int]:
    """Whose death would matter: all processes with this role; of the stages, those that have
    computed since `before`, at least half as long as the busiest one. The others are spares."""
    alive = [process for process in now if process.role == role]
    if role != "stage":
        return [process.pid for process in alive]
    earlier = {process.pid: process.cpu_s for process in before}
    worked = {
        process.pid: process.cpu_s - earlier.get(process.pid, 0.0) for process in alive
    }
    most = max(worked.values(), default=0.0)
    return [pid for pid, seconds in worked.items() if seconds >= most / 2]


def replaced(before: Iterable[Process], after: Iterable[Process]) -> dict[str, int]:
    """By role, how many processes are there now that were not before; roles of Ray's pool left
    out."""
    known = {process.pid for process in before}
    fresh: dict[str, int] = {}
    for process in after:
        if process.pid not in known and process.role not in (
            "idle worker",
            "other worker",
            OTHER,
        ):
            fresh[process.role] = fresh.get(process.role, 0) + 1
    return fresh


def shared_memory() -> list[str]:
    """Names of the shared memory segments of this machine."""
    return sorted(os.listdir("/dev/shm"))


def folders() -> list[str]:
    """Folders of links that somebody has made and not removed."""
    return sorted([path.name for path in Path("/tmp").glob("medha-*")])
