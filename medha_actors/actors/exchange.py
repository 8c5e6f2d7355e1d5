"""Exchange: what the KV groups of one stage tell each other inside a step, once per layer (paper,
3.3).

Groups on one host use mailboxes in shared memory, GPUs the transports of their links; others the
links.
"""

from __future__ import annotations

import os
import select
from collections.abc import Mapping

import numpy as np
import torch

from medha_actors.actors.links import Link
from medha_actors.actors.shared_memory import shared_memory
from medha_actors.actors.transports import Transport, swapped
from medha_actors.errors import LinkClosedError
from medha_actors.model.device import HOST, Device, Lap, Watch
from medha_actors.model.kernels import Mailboxes
from medha_actors.model.merge import Exchange, merge_into, merge_packed, pack

# looks at a counter before the thread offers its core to others, some 50 us
_SPINS = 20_000


class PeerExchange(Exchange):
    """With the same stage in the other groups, each at the end of a link."""

    def __init__(
        self, group: int, peers: dict[int, Link], device: Device = HOST
    ) -> None:
        self._group = group
        self._peers = peers
        self._watch = Watch(device)

    def take(self) -> Lap:
        """The device's time spent here since the last call: sending, and waiting for the other
        groups."""
        return self._watch.take()


class LinkExchange(PeerExchange):
    """Over links: every group gathers all partials and merges them in the same order."""

    def merge(
        self, groups: tuple[int, ...], out: torch.Tensor, lse: torch.Tensor
    ) -> None:
        others = {peer: self._peers[peer] for peer in groups if peer != self._group}
        with self._watch.running():
            partials = swap(self._group, others, pack(out, lse))
        ordered = dict(zip(sorted(groups), partials, strict=True))
        out.copy_(merge_packed([ordered[group] for group in groups]))


class TransportExchange(PeerExchange):
    """Through the transports of the links: every group gets all partials in the type that they were
    computed in, and merges them in the same order. On a GPU all of it is only queued."""

    def __init__(
        self,
        group: int,
        peers: dict[int, Link],
        transports: Mapping[int, Transport],
        device: Device = HOST,
    ) -> None:
        super().__init__(group, peers, device)
        self._transports = transports

    def merge(
        self, groups: tuple[int, ...], out: torch.Tensor, lse: torch.Tensor
    ) -> None:
        others = {
            peer: self._transports[peer] for peer in groups if peer != self._group
        }
        with self._watch.running():
            found = swapped(self._group, others, out, lse)
        ordered = dict(zip(sorted(groups), found, strict=True))
        outs = [ordered[group][0] for group in groups]
        lses = [ordered[group][1] for group in groups]
        merge_into(out, outs, lses)


class SharedExchange(PeerExchange):
    """Through shared memory, for stages on a CPU; the links only tell when a peer dies."""

    def __init__(self, group: int, peers: dict[int, Link], boxes: Mailboxes) -> None:
        super().__init__(group, peers)
        self._boxes = boxes
        self._swaps = dict.fromkeys(peers, 0)  # so far, with each peer

    def merge(
        self, groups: tuple[int, ...], out: torch.Tensor, lse: torch.Tensor
    ) -> None:
        with self._watch.running():
            merged = out.float()  # `out` itself, unless it is of 16 bits
            rows = self._boxes.block_rows
            for start in range(0, len(out), rows):
                block = slice(start, start + rows)
                self._swap(groups, merged[block].numpy(), lse[block].numpy())
            if merged is not out:
                out.copy_(merged)

    def _swap(self, groups: tuple[int, ...], out: np.ndarray, lse: np.ndarray) -> None:
        own = self._group
        numbers = {}
        for peer in groups:
            if peer != own:
                self._swaps[peer] += 1
                numbers[peer] = self._swaps[peer]
                self._boxes.post(own, peer, numbers[peer], out, lse)
        sockets = [self._peers[peer] for peer in numbers]
        while not self._boxes.wait(own, numbers, _SPINS):
            os.sched_yield()
            readable, _, _ = select.select(sockets, (), (), 0)
            if readable:  # nothing is ever sent here
                raise LinkClosedError("a KV group is gone")
        self._boxes.merge(own, groups, numbers, out, lse)


def swap(
    own: int, others: Mapping[int, Link], tensor: torch.Tensor
) -> list[torch.Tensor]:
    """The tensors of all that call this together, in the order of their numbers; `own`: this one's.

    Every pair talks in an order both know (the lower number first), so full socket buffers cannot
    deadlock.
    """
    found = {own: tensor}
    for other in sorted(others):
        link = others[other]
        if own < other:
            link.send(b"", tensor)
        received = link.recv()[1]
        if own > other:
            link.send(b"", tensor)
        assert received is not None
        found[other] = received.to(tensor.device)
    return [found[number] for number in sorted(found)]


def transports_of(links: Mapping[int, Link]) -> dict[int, Transport] | None:
    """Of all these links; None where one has none."""
    found = {number: link.transport for number, link in links.items()}
    whole = {number: one for number, one in found.items() if one is not None}
    return whole if whole and len(whole) == len(found) else None


def open_mailboxes(name: str, groups: int, heads: int, head_dim: int) -> Mailboxes:
    """The mailboxes of one stage; every group of the stage on this host opens the same `name`."""
    memory = shared_memory(name, Mailboxes.nbytes(groups, heads, head_dim))
    return Mailboxes(memory, groups, heads, head_dim)
