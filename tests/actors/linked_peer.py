"""The other end of a link, in a process of its own: it agrees on a transport as this one does."""

from __future__ import annotations

import multiprocessing
import multiprocessing.process
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import torch

from medha_actors.actors.cells import Cell
from medha_actors.actors.exchange import TransportExchange
from medha_actors.actors.links import Endpoint, Link, Listener, dial
from medha_actors.actors.lookout import Lookout
from medha_actors.actors.teams import TransportTeam
from medha_actors.actors.tensor_links import (
    PairWay,
    RingWay,
    Way,
    agree,
    edge_between,
    ways_for,
)
from medha_actors.actors.transports import Transport, swapped
from medha_actors.errors import LinkClosedError
from tests.actors.queued_device import QueuedDevice

CPU = torch.device("cpu")
SMALL = (4, 4096)  # blocks, bytes of each
KINDS = ("shared", "pinned", "ipc", "gloo")


def way_of(kind: str, device: torch.device = CPU) -> Way:
    """On the CPU with small memory and a device that stands in for a GPU."""
    if device != CPU and kind == "nccl":
        return PairWay(device)
    if device != CPU:
        return next(way for way in ways_for(True, device) if way.kind == kind)
    if kind == "gloo":
        return PairWay(CPU)
    if kind == "shared":
        return RingWay(kind, CPU, None, size=SMALL)
    return RingWay(kind, CPU, QueuedDevice(), on_device=kind == "ipc", size=SMALL)


def linked(
    link: Link, cell: Cell, other: Cell, kinds: list[Way]
) -> tuple[Transport | None, Lookout]:
    """Give one end its transport."""
    lookout = Lookout([link])
    link.transport = agree("two tests", edge_between(cell, other, link), kinds, lookout)
    link.lookout = lookout
    return link.transport, lookout


def swap_once(transport: Transport, own: int, *given: torch.Tensor):
    return swapped(own, {1 - own: transport}, *given)


def work(
    endpoint: Endpoint,
    kind: str,
    cell: Cell,
    other: Cell,
    what: str,
    device: torch.device,
) -> None:
    """In the process of the other end: `echo` sends back what comes, `swap` swaps it, `silent`
    says nothing, `flood` sends without a pause; `merge` and `sum` are group and rank 1 in ten of
    these, with what comes (and twice that)."""
    link = dial(endpoint, "node", "secret", cell)
    transport, _ = linked(link, cell, other, [way_of(kind, device)])
    assert transport is not None
    try:
        while what == "flood":
            transport.send(torch.ones(2048, 4096, device=device))
        while True:
            message, tensor = link.recv()
            if what == "echo":
                link.send(message, tensor)
            elif what == "swap":
                swap_once(transport, 1, tensor)
            elif what == "merge":
                exchange = TransportExchange(1, {0: link}, {0: transport})
                lse = link.recv()[1]
                for _ in range(10):
                    exchange.merge((0, 1), tensor.clone(), lse)
            elif what == "sum":
                team = TransportTeam(1, {0: link}, {0: transport})
                for _ in range(10):
                    team.total(2 * tensor)
    except LinkClosedError:
        return


def wait_for_work(asked: Connection, device: torch.device) -> None:
    """In a process that is warm before it is told what to do. To NCCL it is a host of its own, for
    two ranks of a host may not share a GPU."""
    os.environ["NCCL_HOSTID"] = f"test-{os.getpid()}"
    torch.empty(1, device=device)
    work(*asked.recv(), device)


class Spares:
    """Processes that are warm, some ahead of those that are taken."""

    def __init__(self, device: torch.device, ahead: int) -> None:
        self._device = device
        self._waiting = [self._start() for _ in range(ahead)]

    def put_to(self, *job) -> multiprocessing.process.BaseProcess:
        """Take one; it does `work(*job)`."""
        self._waiting.append(self._start())
        process, asking = self._waiting.pop(0)
        asking.send(job)
        return process

    def close(self) -> None:
        for process, _ in self._waiting:
            process.kill()
            process.join()

    def _start(self):
        context = multiprocessing.get_context("spawn")
        asked, asking = context.Pipe(duplex=False)
        process = context.Process(
            target=wait_for_work, args=(asked, self._device), daemon=True
        )
        process.start()
        return process, asking


@contextmanager
def peer(
    spares: Spares,
    kind: str,
    what: str,
    here: Cell,
    there: Cell,
    device: torch.device = CPU,
) -> Iterator[tuple[Link, Lookout, multiprocessing.process.BaseProcess]]:
    """This process's end of a link with a transport, its lookout, and the process at the other."""
    listener = Listener("node", "127.0.0.1")
    process = spares.put_to(listener.endpoint, kind, there, here, what)
    try:
        caller, link = listener.accept("secret", timeout_s=60)
        assert caller == there
        transport, lookout = linked(link, here, there, [way_of(kind, device)])
        assert transport is not None
        yield link, lookout, process
        link.close()
        assert lookout.join(10)
    finally:
        listener.close()
        process.kill()
        process.join()
