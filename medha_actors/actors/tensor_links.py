"""Tensor links: chooses what carries the tensors between two actors with a GPU, once their sockets
are linked.

Both ends try the same ways in the same order, tell each other over the socket what they have, prove
that a tensor comes through, and take the first way that both find right:

- `ipc`, on one host: blocks in the receiver's device memory, opened by the sender;
- `pinned`, on one host: blocks in pinned memory of the host; before `ipc` for the hidden states of
  actors that share a GPU: a copy within it takes turns with the computing of both;
- `shared`, on one host: blocks in memory that cannot be pinned;
- `nccl` (`gloo` on a CPU), between hosts: a communicator of the two;
- else tensors go on through the socket.
"""

from __future__ import annotations

import logging
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import msgspec
import torch
from torch._C._distributed_c10d import TCPStore

from medha_actors.actors.cells import Cell
from medha_actors.actors.cuda_driver import CudaDriver
from medha_actors.actors.lanes import Driver, HostLane, Lane, QueueLane, copy_on_host
from medha_actors.actors.links import Link
from medha_actors.actors.lookout import Lookout
from medha_actors.actors.pairs import PairTransport, open_group, open_store
from medha_actors.actors.ring import Receiver, RingTransport, Sender
from medha_actors.actors.ring_memory import Offer, RingMemory
from medha_actors.actors.transports import Transport, swapped

_log = logging.getLogger("medha.links")
_BLOCKS = 8
_BLOCK_BYTES = 4 * 2**20  # 512 rows of a model of 8B parameters
RING_BYTES = (
    _BLOCKS * _BLOCK_BYTES
)  # of device memory, for each link that brings tensors
_PROOF_S = 5.0
_PROOF_COLUMNS = 256
_AGREE_S = 120.0


class Verdict(msgspec.Struct, frozen=True):
    """What one end thinks of a way; "": it works."""

    obstacle: str = ""


_encode = msgspec.msgpack.Encoder().encode
_decode_offer = msgspec.msgpack.Decoder(Offer).decode
_decode_verdict = msgspec.msgpack.Decoder(Verdict).decode


class Edge(msgspec.Struct, frozen=True):
    """A link as one end sees it. `leads`: the other one does not; `sends`, `receives`: tensors;
    `aside`: while this end computes, not inside a step."""

    link: Link
    leads: bool
    sends: bool
    receives: bool
    aside: bool


class Way(ABC):
    """One way to carry tensors. Methods raise RuntimeError or OSError where it does not work."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    @abstractmethod
    def offer(self, edge: Edge) -> Offer:
        """What the other end needs."""

    @abstractmethod
    def open(self, edge: Edge, theirs: Offer, lookout: Lookout) -> Transport:
        """With what the other end offers."""

    @abstractmethod
    def close(self) -> None:
        """Nothing was opened: take the offer back."""


class RingWay(Way):
    """Through memory of this host or of a device in it. `driver`: None where the host does the
    copies itself; `copies`: the driver that it asks to."""

    def __init__(
        self,
        kind: str,
        device: torch.device,
        driver: Driver | None,
        on_device: bool = False,
        copies: CudaDriver | None = None,
        size: tuple[int, int] = (_BLOCKS, _BLOCK_BYTES),
    ) -> None:
        super().__init__(kind)
        self._device = device
        self._driver = driver
        self._on_device = on_device
        self._copies = copies
        self._size = size
        self._mine: RingMemory | None = None

    def offer(self, edge: Edge) -> Offer:
        if self._driver is None and platform.machine() not in ("x86_64", "AMD64"):
            raise RuntimeError("this processor may show writes out of order")
        if not edge.receives:
            return Offer()
        self._mine = RingMemory(*self._size, self._driver, self._on_device)
        return self._mine.offer

    def open(self, edge: Edge, theirs: Offer, lookout: Lookout) -> Transport:
        mine = self._mine
        opened: RingMemory | None = None
        sender: Sender | None = None
        if edge.sends:
            opened = RingMemory(*self._size, self._driver, self._on_device, theirs)
            sender = Sender(opened.ring, self._lane(edge, lookout))
        receiver = Receiver(mine.ring, self._lane(edge, lookout)) if mine else None

        def free() -> None:
            for memory in (opened, mine):
                if memory is not None:
                    memory.free()

        self._mine = None
        return RingTransport(self.kind, self._device, lookout, sender, receiver, free)

    def close(self) -> None:
        if self._mine is not None:
            self._mine.free()
            self._mine = None

    def _lane(self, edge: Edge, lookout: Lookout) -> Lane:
        if self._driver is not None:
            return QueueLane(self._driver, lookout, edge.aside)
        copy = copy_on_host if self._copies is None else self._copies.copy_now
        return HostLane(self._device, lookout, copy)


class PairWay(Way):
    """A communicator: the end that leads has the store where they find each other."""

    def __init__(self, device: torch.device) -> None:
        super().__init__("nccl" if device.type == "cuda" else "gloo")
        self._device = device
        self._store: TCPStore | None = None

    def offer(self, edge: Edge) -> Offer:
        if not torch.distributed.is_available():
            raise RuntimeError("torch has no communicators here")
        if not edge.leads:
            return Offer()
        store = open_store(edge.link.host, None)
        self._store = store
        return Offer(port=store.port)

    def open(self, edge: Edge, theirs: Offer, lookout: Lookout) -> Transport:
        store = self._store or open_store(edge.link.other_host, theirs.port)
        rank = 0 if edge.leads else 1
        group = open_group(store, rank, self._device)
        self._store = None
        return PairTransport(group, store, rank, self._device, lookout)

    def close(self) -> None:
        self._store = None


def link_tensors(
    cell: Cell, links: Mapping[Cell, Link], device: torch.device
) -> Lookout | None:
    """Give the links of a cell transports, where there are any; every cell of the grid calls this
    once all are linked. None: a cell without links."""
    if not links:
        return None
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    lookout = Lookout(links.values())
    # In an order that all have, so that nobody waits in a circle.
    for other in sorted(links, key=lambda other: (min(cell, other), max(cell, other))):
        link = links[other]
        edge = edge_between(cell, other, link)
        link.limit(_AGREE_S)
        shared = edge.aside and shares_gpu(link, device)
        ways = ways_for(link.is_local, device, shared)
        link.transport = agree(f"{cell} and {other}", edge, ways, lookout)
        link.limit(None)
        link.lookout = lookout
    return lookout


def edge_between(cell: Cell, other: Cell, link: Link) -> Edge:
    """Hidden states go to later stages only; groups and ranks swap."""
    aside = cell.stage != other.stage
    return Edge(
        link,
        leads=cell < other,
        sends=not aside or cell.stage < other.stage,
        receives=not aside or cell.stage > other.stage,
        aside=aside,
    )


def shares_gpu(link: Link, device: torch.device) -> bool:
    """Whether both ends are on the same GPU."""
    mine = b""
    if link.is_local and device.type == "cuda":
        mine = str(torch.cuda.get_device_properties(device).uuid).encode()
    link.send(mine)
    theirs = link.recv()[0]
    return bool(mine) and theirs == mine


def ways_for(
    local: bool, device: torch.device, hops_on_one_gpu: bool = False
) -> list[Way]:
    """The ways between two ends on one host, or on two, best first."""
    if not local:
        return [PairWay(device)]
    if device.type != "cuda":
        return [RingWay("shared", device, None)]
    driver = CudaDriver(device)
    ipc = RingWay("ipc", driver.device, driver, on_device=True)
    pinned = RingWay("pinned", driver.device, driver)
    shared = RingWay("shared", driver.device, None, copies=driver)
    return [pinned, ipc, shared] if hops_on_one_gpu else [ipc, pinned, shared]


def agree(
    who: str, edge: Edge, ways: Sequence[Way], lookout: Lookout
) -> Transport | None:
    """The first way that works on both ends, None: there is none; the choice is logged. Raises
    LinkClosedError."""
    refused = []
    for way in ways:
        began = time.perf_counter()
        transport, obstacle = _try(edge, way, lookout)
        if transport is not None:
            spent_ms = 1e3 * (time.perf_counter() - began)
            _log.info(
                "tensors between %s: %s, ready in %.0f ms", who, way.kind, spent_ms
            )
            return transport
        refused.append(f"{way.kind}: {obstacle}")
    _log.warning("tensors between %s: through the socket (%s)", who, "; ".join(refused))
    return None


def _try(edge: Edge, way: Way, lookout: Lookout) -> tuple[Transport | None, str]:
    """The transport, or why there is none."""
    link = edge.link
    transport: Transport | None = None
    try:
        offer = way.offer(edge)
    except (RuntimeError, OSError) as error:
        offer = Offer(obstacle=str(error))
    link.send(_encode(offer))
    theirs = _decode_offer(link.recv()[0])
    obstacle = offer.obstacle or theirs.obstacle
    if not obstacle:
        try:
            transport = way.open(edge, theirs, lookout)
        except (RuntimeError, OSError) as error:
            obstacle = str(error)
        obstacle = _both(link, obstacle)
    way.close()
    if transport is None:
        return None, obstacle
    lookout.add(transport)
    if not obstacle:
        try:
            _prove(edge, transport)
        except (RuntimeError, OSError) as error:
            obstacle = str(error)
        obstacle = _both(link, obstacle)
    if obstacle:
        lookout.drop(transport)
        return None, obstacle
    return transport, ""


def _both(link: Link, obstacle: str) -> str:
    """The obstacle that this end has, or the other."""
    link.send(_encode(Verdict(obstacle)))
    theirs = _decode_verdict(link.recv()[0]).obstacle
    return obstacle or theirs


def _prove(edge: Edge, transport: Transport) -> None:
    """Send and receive more than one block; raises RuntimeError where it is not what was sent."""
    count = _BLOCK_BYTES // 4 + _PROOF_COLUMNS
    sent = torch.arange(count, dtype=torch.int32, device=transport.device).view(
        -1, _PROOF_COLUMNS
    )
    found = sent
    if edge.sends and edge.receives:
        own = 0 if edge.leads else 1
        found = swapped(own, {1 - own: transport}, sent)[1 - own][0]
    elif edge.sends:
        transport.send(sent)
    else:
        found = transport.receive(sent.shape, sent.dtype)
    if not transport.settled(_PROOF_S):
        raise RuntimeError("nothing came through")
    if not torch.equal(found, sent):
        raise RuntimeError("what came is not what was sent")
