"""Which cores the actors of a grid get, and what they find taken by others."""

from __future__ import annotations

import subprocess
import sys

import pytest

from medha_actors.actors.cells import Cell
from medha_actors.actors.cores import Cores
from medha_actors.actors.layout import assign_cores
from medha_actors.actors.plans import Place
from medha_actors.config import load

HOLDER = """
import sys
from medha_actors.actors.cores import Cores
cores = Cores()
print(cores.take([sys.argv[1]]), flush=True)
sys.stdin.read()
"""


def assigned(cells, cores, **actors):
    places = {
        cell: Place(node, tuple(range(cores)), 2**30, None)
        for cell, node in cells.items()
    }
    return assign_cores(places, load({"actors": actors}))


PAIR = {Cell(0, 0): "a", Cell(1, 0): "a"}


@pytest.mark.parametrize(
    ("cores", "actors", "expected"),
    [
        (2, {}, [(0,), (1,)]),
        (8, {}, [(0, 1, 2, 3), (4, 5, 6, 7)]),
        (8, {"threads": 1}, [(0,), (1,)]),
        (64, {}, [tuple(range(16)), tuple(range(16, 32))]),
        (1, {}, [(), ()]),
        (3, {"threads": 2}, [(), ()]),
        (8, {"pin": False}, [(), ()]),
    ],
)
def test_the_actors_of_a_node_share_its_cores(cores, actors, expected):
    assert list(assigned(PAIR, cores, **actors).values()) == expected


def test_each_node_by_itself():
    apart = {Cell(0, 0): "a", Cell(1, 0): "b"}
    assert list(assigned(apart, 2).values()) == [(0, 1), (0, 1)]


def test_a_core_is_taken_once_and_free_when_its_process_has_ended():
    core = "of nobody else"
    mine = Cores()
    command = [sys.executable, "-c", HOLDER, core]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "True\n"
        assert not mine.take([core])
        holder.stdin.close()
    assert mine.take([core])
    assert not Cores().take([core])
    assert mine.take([])
    other = Cores()
    assert other.take([core])
    other.leave()
