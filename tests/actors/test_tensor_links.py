"""Transports of links: rings through shared memory and through a device that works in its own time,
and communicators of two (gloo)."""

from __future__ import annotations

import json
import logging
import os

import pytest
import torch

from medha_actors.actors.cells import Cell
from medha_actors.actors.lookout import Lookout, Waiting
from medha_actors.actors.tensor_links import RingWay, edge_between
from medha_actors.bench import gpu_links
from medha_actors.errors import LinkClosedError
from tests.actors.link_ends import (
    GROUPS,
    STAGES,
    end,
    pair,
    tensors,
    together,
    two_ends,
)
from tests.actors.linked_peer import CPU, KINDS, SMALL, swap_once, way_of
from tests.actors.queued_device import QueuedDevice


@pytest.mark.parametrize("kind", KINDS)
def test_frames_carry_tensors_beside_the_socket(kind: str):
    links, ((first, lookout), (second, other)) = two_ends(
        STAGES, [[way_of(kind)], [way_of(kind)]]
    )
    assert first.kind == second.kind == kind
    for tensor in tensors(60, 1_000):
        _, (message, found) = together(
            (links[0].send, b"a step", tensor), (links[1].recv,)
        )
        assert message == b"a step"
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
    links[0].send(b"none", torch.zeros(0, 4))
    assert links[1].recv()[1].shape == (0, 4)
    links[1].send(b"back")
    assert links[0].recv() == (b"back", None)
    end(links, (lookout, other))


@pytest.mark.parametrize("kind", KINDS)
def test_swaps_of_any_size(kind: str):
    """Both put first, more than the memory between them holds."""
    links, ((first, lookout), (second, other)) = two_ends(
        GROUPS, [[way_of(kind)], [way_of(kind)]]
    )
    for rows in (1, 3, 700, 5_000):
        given = [
            (torch.randn(rows, 2, 4), torch.randn(rows, 2).bfloat16()) for _ in range(2)
        ]
        found = together(
            (swap_once, first, 0, *given[0]), (swap_once, second, 1, *given[1])
        )
        for end_found in found:
            for mine, expected in zip(end_found, given, strict=True):
                assert torch.equal(mine[0], expected[0])
                assert torch.equal(mine[1], expected[1])
    end(links, (lookout, other))


def test_all_memory_is_given_back():
    drivers = [QueuedDevice(), QueuedDevice()]
    ways = [
        [RingWay("ipc", CPU, driver, on_device=True, size=SMALL)] for driver in drivers
    ]
    before = set(os.listdir("/dev/shm"))
    links, found = two_ends(GROUPS, ways)
    assert all(driver.memory for driver in drivers)
    end(links, [lookout for _, lookout in found])
    assert not any(driver.memory for driver in drivers)
    assert set(os.listdir("/dev/shm")) <= before


@pytest.mark.parametrize(
    ("driver", "why"),
    [
        (QueuedDevice(opens=False), "another host's device"),
        (QueuedDevice(broken=True), "what came is not what was sent"),
    ],
    ids=["refused", "corrupt"],
)
def test_what_does_not_work_on_one_end_is_not_taken_on_either(driver, why, caplog):
    good = QueuedDevice()
    ways = [
        [RingWay("ipc", CPU, one, on_device=True, size=SMALL), way_of("shared")]
        for one in (good, driver)
    ]
    before = set(os.listdir("/dev/shm"))
    links, found = two_ends(GROUPS, ways)
    assert [transport.kind for transport, _ in found] == ["shared", "shared"]
    assert not good.memory
    end(links, [lookout for _, lookout in found])
    assert set(os.listdir("/dev/shm")) <= before
    with caplog.at_level(logging.WARNING):
        links, found = two_ends(GROUPS, [ways[0][:1], ways[1][:1]])
    assert [transport for transport, _ in found] == [None, None]
    assert why in caplog.text
    end(links, [lookout for _, lookout in found])


class Held(Waiting):
    """Is let go at the third try."""

    def __init__(self):
        self.tries = 0
        self.freed = 0

    def release(self):
        self.tries += 1
        return self.tries == 3

    def free(self):
        self.freed += 1


def test_what_waits_is_let_go_once_whenever_it_comes():
    link, other = pair()
    lookout = Lookout([link])
    early = Held()
    dropped = Held()
    late = Held()
    lookout.add(early)
    lookout.add(dropped)
    lookout.drop(dropped)
    lookout.require_whole()
    other.close()
    assert lookout.join(10)
    lookout.add(late)
    lookout.drop(late)
    assert [(one.tries, one.freed) for one in (early, dropped, late)] == [(3, 1)] * 3
    with pytest.raises(LinkClosedError):
        lookout.require_whole()
    link.close()


def test_directions_follow_the_stages():
    for here, there, sends, receives in (
        (*STAGES, True, False),
        (*reversed(STAGES), False, True),
        (*GROUPS, True, True),
        (Cell(1, 0, 1), Cell(1, 0, 0), True, True),
    ):
        link, other = pair()
        edge = edge_between(here, there, link)
        assert (edge.sends, edge.receives, edge.aside) == (
            sends,
            receives,
            here[0] != there[0],
        )
        end((link, other), ())


def test_the_benchmark_of_links_measures_all_that_there_is(tmp_path, capsys):
    rows = gpu_links.run(tmp_path, "cpu", counts=(1, 5))
    assert [row["transport"] for row in rows] == ["shared", "socket"]
    for row in rows:
        assert row["merge 5 us"] > 0
        assert row["sum 5 us"] > 0
    assert "hop 5 ms" in capsys.readouterr().out
    assert json.loads((tmp_path / "gpu_links.json").read_text())["rows"] == rows
