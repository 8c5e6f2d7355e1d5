"""Judging of growth by made-up processes, and who is who among real ones."""

import os

import msgspec
import pytest

from tests.chaos.census import Process, processes, replaced, role_of, victims
from tests.chaos.growth import Snapshot, grown, rows

STAGE = Process(pid=1, role="stage", resident_bytes=10**9, descriptors=40, threads=20)
AT_REST = Snapshot([STAGE], pages=0, tasks=9, shared_memory=["a"], folders=[])


def with_process(**changes):
    return msgspec.structs.replace(
        AT_REST, processes=[msgspec.structs.replace(STAGE, **changes)]
    )


@pytest.mark.parametrize(
    "later",
    [
        AT_REST,
        with_process(pid=2),
        with_process(resident_bytes=1_149_000_000, descriptors=45, threads=25),
        msgspec.structs.replace(AT_REST, processes=[], tasks=14, shared_memory=["b"]),
        msgspec.structs.replace(
            AT_REST, processes=[STAGE, Process(7, "idle worker", 10**8, 30, 20)]
        ),
    ],
)
def test_what_is_within_the_allowance_has_not_grown(later):
    assert grown(AT_REST, later) == []


@pytest.mark.parametrize(
    ("later", "expected"),
    [
        (with_process(resident_bytes=1_151_000_000), "stage: memory 1,000 -> 1,151 MB"),
        (with_process(descriptors=46), "stage: descriptors 40 -> 46"),
        (with_process(threads=26), "stage: threads 20 -> 26"),
        (
            msgspec.structs.replace(AT_REST, processes=[STAGE, STAGE]),
            "stage: processes 1 -> 2",
        ),
        (
            msgspec.structs.replace(
                AT_REST, processes=[STAGE, Process(8, "other", 1, 1, 1)]
            ),
            "other: 1 processes that were not there",
        ),
        (msgspec.structs.replace(AT_REST, pages=1), "KV pages in use: 0 -> 1"),
        (msgspec.structs.replace(AT_REST, tasks=15), "tasks: 9 -> 15"),
        (
            msgspec.structs.replace(AT_REST, shared_memory=["a", "b"]),
            "segments in /dev/shm: 1 -> 2",
        ),
        (
            msgspec.structs.replace(AT_REST, folders=["medha-x"]),
            "folders /tmp/medha-*: 0 -> 1",
        ),
    ],
)
def test_what_has_grown_is_named(later, expected):
    assert grown(AT_REST, later) == [expected]


def test_moments_stand_beside_each_other():
    later = msgspec.structs.replace(AT_REST, processes=[])
    assert rows([AT_REST, later]) == [
        ["stage", "1 / -", "1,000 / -", "40 / -", "20 / -"]
    ]


@pytest.mark.parametrize(
    ("name", "command", "role"),
    [
        ("ray::StageActor", ["ray::StageActor", ""], "stage"),
        ("ray::SchedulerA", ["ray::SchedulerActor.stream", ""], "scheduler"),
        ("ray::ServeRepl", ["ray::ServeReplica:medha:medha", ""], "ingress"),
        (
            "ray::ServeContr",
            ["ray::ServeController.listen_for_change"],
            "serve controller",
        ),
        ("haproxy", ["/usr/bin/haproxy", "-db", "-f"], "haproxy"),
        ("raylet", ["/x/raylet", "--a=b"], "raylet"),
        ("python3", ["python3", "/x/ray/dashboard/dashboard.py"], "dashboard"),
        ("python3", ["python3", "-u", "monitor.py"], "other"),
        ("gone", [], "other"),
    ],
)
def test_roles(name, command, role):
    assert role_of(name, command) == role


def test_this_process_is_in_its_own_session():
    (own,) = [each for each in processes(os.getsid(0)) if each.pid == os.getpid()]
    assert own.resident_bytes > 10**6
    assert own.descriptors > 2
    assert own.threads >= 1


def test_only_new_processes_are_replacements():
    fresh = [msgspec.structs.replace(STAGE, pid=pid) for pid in (1, 2, 3)]
    pool = Process(9, "idle worker", 1, 1, 1)
    assert replaced([STAGE], [*fresh, pool]) == {"stage": 2}


def test_spares_do_not_work():
    resting = [msgspec.structs.replace(STAGE, pid=pid, cpu_s=9.0) for pid in (1, 2, 3)]
    seconds = {1: 9.01, 2: 12.0, 3: 11.0, 4: 2.5}  # 4 is new
    busy = [
        msgspec.structs.replace(STAGE, pid=pid, cpu_s=cpu)
        for pid, cpu in seconds.items()
    ]
    other = Process(5, "ingress", 1, 1, 1, cpu_s=50.0)
    assert victims(resting, [*busy, other], "stage") == [2, 3, 4]
    assert victims(resting, [*busy, other], "ingress") == [5]
    assert victims(resting, [], "stage") == []
