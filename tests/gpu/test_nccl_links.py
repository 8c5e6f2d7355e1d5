"""Communicators of two over NCCL, as between hosts: two processes on one GPU, each of which takes
itself for a host of its own (NCCL refuses one GPU to two ranks of a host)."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
import torch

from medha_actors.actors.cells import Cell
from medha_actors.errors import LinkClosedError
from tests.actors.linked_peer import Spares, peer, swap_once

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.timeout(60),
]

os.environ.setdefault("NCCL_HOSTID", f"test-{os.getpid()}")
os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")

GPU = torch.device("cuda", 0)
STAGES = (Cell(0, 0), Cell(1, 0))
GROUPS = (Cell(0, 0), Cell(0, 1))


@pytest.fixture(scope="module")
def spares():
    spares = Spares(GPU, ahead=2)
    yield spares
    spares.close()


def test_tensors_come_back_as_they_were(spares: Spares):
    with peer(spares, "nccl", "echo", *GROUPS, GPU) as (link, _, _):
        assert link.transport.kind == "nccl"
        for rows in (1, 7, 300, 2048, 5000):
            tensor = torch.randn(rows, 1024, device=GPU).bfloat16()
            link.send(b"a step", tensor)
            message, found = link.recv()
            assert message == b"a step"
            assert torch.equal(found, tensor)


def test_swaps(spares: Spares):
    with peer(spares, "nccl", "swap", *GROUPS, GPU) as (link, _, _):
        for rows in (1, 64, 2048):
            tensor = torch.randn(rows, 4096, device=GPU)
            link.send(b"", tensor)
            (mine,), (theirs,) = swap_once(link.transport, 0, tensor)
            assert torch.equal(mine, tensor)
            assert torch.equal(theirs, tensor)


def test_a_killed_process_lets_the_gpu_go(spares: Spares):
    with peer(spares, "nccl", "silent", *GROUPS, GPU) as (link, lookout, process):
        threading.Timer(0.3, os.kill, (process.pid, signal.SIGKILL)).start()
        link.transport.put(torch.ones(4, 4, device=GPU))
        link.transport.take(torch.empty(4, 4, device=GPU))
        began = time.monotonic()
        torch.cuda.synchronize()
        assert lookout.join(20)
        print(f"let go {1e3 * (time.monotonic() - began):.0f} ms after the wait began")
        with pytest.raises(LinkClosedError):
            link.send(b"of a dead cell's")
    assert torch.ones(1000, 1000, device=GPU).sum().item() == 1_000_000


def test_a_new_communicator_comes_after_a_death(spares: Spares):
    with peer(spares, "nccl", "echo", *STAGES, GPU) as (link, _, _):
        link.transport.send(torch.ones(2048, 4096, device=GPU))
        torch.cuda.synchronize()
