"""Transports of links: rings through shared memory and through a device that works in its own time,
and communicators of two (gloo); in this process and between two."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import socket
import threading
import time

import pytest
import torch

from medha_actors.actors.cells import Cell
from medha_actors.actors.exchange import LinkExchange, TransportExchange, transports_of
from medha_actors.actors.links import Link
from medha_actors.actors.lookout import Lookout, Waiting
from medha_actors.actors.teams import LinkTeam, TransportTeam
from medha_actors.actors.tensor_links import RingWay, edge_between, link_tensors
from medha_actors.bench import gpu_links
from medha_actors.errors import LinkClosedError
from medha_actors.model.merge import merge
from medha_actors.model.team import add_up
from tests.actors.linked_peer import (
    CPU,
    KINDS,
    SMALL,
    Spares,
    linked,
    peer,
    swap_once,
    way_of,
)
from tests.actors.queued_device import QueuedDevice

STAGES = (Cell(0, 0), Cell(1, 0))
GROUPS = (Cell(0, 0), Cell(0, 1))
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int64)


@pytest.fixture(scope="module")
def spares():
    spares = Spares(CPU, ahead=1)
    yield spares
    spares.close()


def pair() -> tuple[Link, Link]:
    left, right = socket.socketpair()
    return Link(left), Link(right)


def together(*calls):
    """What calls, each (function, *arguments), return that wait for each other."""
    results = [None] * len(calls)

    def run(number, function, *arguments):
        results[number] = function(*arguments)

    threads = []
    for number, call in enumerate(calls):
        threads.append(threading.Thread(target=run, args=(number, *call)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    return results


def two_ends(cells, ways):
    """Both ends of a link, and their transports and lookouts."""
    links = pair()
    (first, second) = cells
    found = together(
        (linked, links[0], first, second, ways[0]),
        (linked, links[1], second, first, ways[1]),
    )
    return links, found


def end(links, lookouts):
    for link in links:
        link.close()
    for lookout in lookouts:
        assert lookout.join(10)


def tensors(count: int, most: int):
    """Random ones, of all types, some larger than a whole ring."""
    draw = random.Random(count)
    generator = torch.Generator().manual_seed(count)
    for _ in range(count):
        shape = (draw.randint(1, most), draw.randint(1, 9))
        yield torch.randint(-100, 100, shape, generator=generator).to(
            draw.choice(DTYPES)
        )


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


def team_of(ranks: int):
    """The links of each rank with transports."""
    cells = [Cell(0, 0, rank) for rank in range(ranks)]
    links = [{} for _ in range(ranks)]
    for a in range(ranks):
        for b in range(a + 1, ranks):
            links[a][cells[b]], links[b][cells[a]] = pair()
    lookouts = together(
        *[(link_tensors, cells[rank], links[rank], CPU) for rank in range(ranks)]
    )
    return [
        {cell.rank: link for cell, link in found.items()} for found in links
    ], lookouts


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_sums_have_the_same_bits_on_all_ranks(ranks: int):
    """However they are formed: as links form them, in float32 in the order of ranks."""
    links, lookouts = team_of(ranks)
    for rows, width, large in ((1, 64, 0), (3, 64, 0), (50, 64, 0), (50, 64, 1 << 30)):
        generator = torch.Generator().manual_seed(rows)
        given = [
            torch.randn(rows, width, generator=generator).mul(10.0**rank).bfloat16()
            for rank in range(ranks)
        ]
        teams = [
            TransportTeam(rank, links[rank], transports_of(links[rank]), large)
            for rank in range(ranks)
        ]
        expected = add_up(given).bfloat16()
        found = together(*[(teams[rank].total, given[rank]) for rank in range(ranks)])
        assert all(torch.equal(total, expected) for total in found)
        pieces = together(
            *[(teams[rank].gather, torch.arange(rank)) for rank in range(ranks)]
        )
        assert [[len(part) for part in parts] for parts in pieces] == [
            list(range(ranks))
        ] * ranks
    for found in links:
        end(found.values(), ())
    for lookout in lookouts:
        assert lookout.join(10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_groups_merge_as_links_do(dtype: torch.dtype):
    links, lookouts = team_of(3)
    exchanges = [
        TransportExchange(k, links[k], transports_of(links[k])) for k in range(3)
    ]
    for order in ((0, 1, 2), (2, 0, 1), (0, 2)):
        outs = [torch.randn(40, 9, 64).to(dtype) for _ in range(3)]
        lses = [torch.randn(40, 9) * 10 for _ in range(3)]
        lses[0][0] = -torch.inf
        whole = merge([outs[k] for k in order], [lses[k] for k in order])[0].to(dtype)
        copies = [out.clone() for out in outs]
        together(*[(exchanges[k].merge, order, copies[k], lses[k]) for k in order])
        assert all(torch.equal(copies[k], whole) for k in order)
        assert all(exchanges[k].take().seconds() > 0 for k in order)
    for found in links:
        end(found.values(), ())
    for lookout in lookouts:
        assert lookout.join(10)


def test_links_without_transports_have_none():
    link, other = pair()
    assert transports_of({1: link}) is None
    assert transports_of({}) is None
    assert LinkTeam(0, {1: link}).ranks == 2
    assert LinkExchange(0, {1: link}).take().seconds() == 0.0
    end((link, other), ())


@pytest.mark.parametrize("kind", KINDS)
def test_between_two_processes(spares: Spares, kind: str):
    with peer(spares, kind, "swap", *GROUPS) as (link, _, process):
        for tensor in tensors(20, 1_000):
            link.send(b"", tensor)
            mine, theirs = swap_once(link.transport, 0, tensor)
            assert torch.equal(mine[0], tensor)
            assert torch.equal(theirs[0], tensor)
        assert process.is_alive()


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_process_lets_the_other_one_go(spares: Spares, kind: str):
    """It waits for a tensor that will never come. What it then has is worthless, and nothing more
    of it leaves the actor."""
    with peer(spares, kind, "silent", *GROUPS) as (link, lookout, process):
        threading.Timer(0.3, os.kill, (process.pid, signal.SIGKILL)).start()
        began = time.monotonic()
        try:
            link.transport.put(torch.ones(4, 4))
            link.transport.take(torch.empty(4, 4))
        except LinkClosedError:
            pass  # some notice it by themselves
        assert time.monotonic() - began < 10
        assert lookout.join(10)
        with pytest.raises(LinkClosedError):
            link.send(b"of a dead cell's")
        with pytest.raises(LinkClosedError):
            link.transport.send(torch.ones(4, 4))


def send_often(link: Link) -> None:
    for _ in range(50):
        link.send(b"a step", torch.ones(1000, 1000))


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_process_lets_the_sender_go(spares: Spares, kind: str):
    """More than the memory between them holds, and nobody takes it."""
    with peer(spares, kind, "silent", *STAGES) as (link, lookout, process):
        process.kill()
        with pytest.raises(LinkClosedError):
            send_often(link)
        assert lookout.join(10)


@pytest.mark.parametrize("kind", KINDS)
def test_the_break_of_one_link_lets_all_of_the_actor_go(spares: Spares, kind: str):
    """The other process lives, and waits for nothing here."""
    with peer(spares, kind, "silent", *GROUPS) as (link, lookout, _):
        threading.Timer(0.2, link.close).start()
        try:
            link.transport.put(torch.ones(4, 4))
            link.transport.take(torch.empty(4, 4))
        except LinkClosedError:
            pass
        assert lookout.join(10)
        assert lookout.broken


def test_the_benchmark_of_links_measures_all_that_there_is(tmp_path, capsys):
    rows = gpu_links.run(tmp_path, "cpu", counts=(1, 5))
    assert [row["transport"] for row in rows] == ["shared", "socket"]
    assert all(row[f"{what} 5 us"] > 0 for row in rows for what in ("merge", "sum"))
    assert "hop 5 ms" in capsys.readouterr().out
    assert json.loads((tmp_path / "gpu_links.json").read_text())["rows"] == rows
