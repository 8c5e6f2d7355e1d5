"""Judging what a server holds before and after a long load. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from tests.chaos.census import LOG_MONITOR, Process
from tests.chaos.tables import megabytes

MEMORY_SHARE: Final = 0.10
MEMORY_BYTES: Final = 50_000_000
DESCRIPTORS: Final = 5
# Ray's log monitor keeps so many logs open, those of dead workers too
LOGS: Final = 200
THREADS: Final = 5
TASKS: Final = 5
_POOL: Final = ("idle worker", "other worker")  # Ray keeps as many as it likes


class Holding(msgspec.Struct, frozen=True):
    """What the processes of one role hold: the most that one of them does, of each."""

    processes: int
    resident_bytes: int
    descriptors: int
    threads: int


class Snapshot(msgspec.Struct, frozen=True):
    """A server at rest."""

    processes: list[Process]
    pages: int  # of KV cache in use
    tasks: int  # on the event loops of the controller and the replicas
    shared_memory: list[str]  # names of segments
    folders: list[str]  # names of the links' folders

    def roles(self) -> dict[str, Holding]:
        by_role: dict[str, list[Process]] = {}
        for process in self.processes:
            by_role.setdefault(process.role, []).append(process)
        return {role: _holding(alike) for role, alike in sorted(by_role.items())}


def _holding(alike: Sequence[Process]) -> Holding:
    return Holding(
        processes=len(alike),
        resident_bytes=max([process.resident_bytes for process in alike]),
        descriptors=max([process.descriptors for process in alike]),
        threads=max([process.threads for process in alike]),
    )


def grown(before: Snapshot, after: Snapshot) -> list[str]:
    """What is larger than the allowance, in words: memory by 10% and 50 MB, descriptors,
    threads and tasks by 5; processes, pages, segments and folders by nothing."""
    larger: list[str] = []
    earlier = before.roles()
    for role, now in after.roles().items():
        if role in earlier:
            larger += _grown_role(role, earlier[role], now)
        elif role not in _POOL:
            larger.append(f"{role}: {now.processes} processes that were not there")
    for what, start, end in (
        ("KV pages in use", before.pages, after.pages),
        ("segments in /dev/shm", len(before.shared_memory), len(after.shared_memory)),
        ("folders /tmp/medha-*", len(before.folders), len(after.folders)),
    ):
        if end > start:
            larger.append(f"{what}: {start} -> {end}")
    if after.tasks > before.tasks + TASKS:
        larger.append(f"tasks: {before.tasks} -> {after.tasks}")
    return larger


def _grown_role(role: str, before: Holding, after: Holding) -> list[str]:
    larger: list[str] = []
    if after.resident_bytes > before.resident_bytes * (1 + MEMORY_SHARE) + MEMORY_BYTES:
        grew = f"{megabytes(before.resident_bytes)} -> {megabytes(after.resident_bytes)} MB"
        larger.append(f"{role}: memory {grew}")
    kept = LOGS if role == LOG_MONITOR else DESCRIPTORS
    if after.descriptors > before.descriptors + kept:
        larger.append(
            f"{role}: descriptors {before.descriptors} -> {after.descriptors}"
        )
    if after.threads > before.threads + THREADS:
        larger.append(f"{role}: threads {before.threads} -> {after.threads}")
    if after.processes > before.processes and role not in _POOL:
        larger.append(f"{role}: processes {before.processes} -> {after.processes}")
    return larger


def rows(moments: Sequence[Snapshot]) -> list[list[str]]:
    """One row for each role and each other thing held, the moments beside each other."""
    holdings = [moment.roles() for moment in moments]
    lines: list[list[str]] = []
    for role in sorted(set().union(*holdings)):
        here = [holding.get(role) for holding in holdings]
        lines.append(
            [
                role,
                _beside(here, lambda held: str(held.processes)),
                _beside(here, lambda held: megabytes(held.resident_bytes)),
                _beside(here, lambda held: str(held.descriptors)),
                _beside(here, lambda held: str(held.threads)),
            ]
        )
    return lines


def _beside(here: Sequence[Holding | None], text: Callable[[Holding], str]) -> str:
    return " / ".join(["-" if held is None else text(held) for held in here])
