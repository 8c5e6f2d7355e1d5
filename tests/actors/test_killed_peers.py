"""Transports of links between two processes, one of which may die."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import torch

from medha_actors.actors.links import Link
from medha_actors.errors import LinkClosedError
from tests.actors.link_ends import GROUPS, STAGES, tensors
from tests.actors.linked_peer import CPU, KINDS, Spares, peer, swap_once


@pytest.fixture(scope="module")
def spares():
    spares = Spares(CPU, ahead=1)
    yield spares
    spares.close()


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
