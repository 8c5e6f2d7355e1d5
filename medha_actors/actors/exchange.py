"""Exchange: what the KV groups of one stage tell each other inside a step, once per layer (paper,
3.3).

Groups on one host use mailboxes in shared memory; others, and GPUs, the links.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import time

import numpy as np
import torch

from medha_actors.actors.links import Link
from medha_actors.errors import LinkClosedError
from medha_actors.model.kernels import Mailboxes
from medha_actors.model.merge import Exchange, merge_packed, pack

# looks at a counter before the thread offers its core to others, some 50 us
_SPINS = 20_000


class PeerExchange(Exchange):
    """With the same stage in the other groups, each at the end of a link."""

    def __init__(self, group: int, peers: dict[int, Link]) -> None:
        self._group = group
        self._peers = peers
        self._seconds = 0.0

    def take_seconds(self) -> float:
        """Seconds spent here since the last call: sending, and waiting for the other groups."""
        seconds = self._seconds
        self._seconds = 0.0
        return seconds


class LinkExchange(PeerExchange):
    """Over links: every group gathers all partials and merges them in the same order."""

    def merge(self, groups: tuple[int, ...], out: torch.Tensor, lse: torch.Tensor) -> None:
        out.copy_(merge_packed(self._gather(groups, pack(out, lse))))

    def _gather(self, groups: tuple[int, ...], partial: torch.Tensor) -> list[torch.Tensor]:
        """Every pair talks in an order both know (the lower group first), so full socket buffers
        cannot deadlock."""
        began = time.perf_counter()
        gathered = {self._group: partial}
        for peer in sorted(groups):
            if peer == self._group:
                continue
            link = self._peers[peer]
            if self._group < peer:
                link.send(b"", partial)
            received = link.recv()[1]
            if self._group > peer:
                link.send(b"", partial)
            assert received is not None
            gathered[peer] = received.to(partial.device)
        self._seconds += time.perf_counter() - began
        return [gathered[group] for group in groups]


class SharedExchange(PeerExchange):
    """Through shared memory, for stages on a CPU; the links only tell when a peer dies."""

    def __init__(self, group: int, peers: dict[int, Link], boxes: Mailboxes) -> None:
        super().__init__(group, peers)
        self._boxes = boxes
        self._swaps = dict.fromkeys(peers, 0)  # so far, with each peer

    def merge(self, groups: tuple[int, ...], out: torch.Tensor, lse: torch.Tensor) -> None:
        began = time.perf_counter()
        merged = out.float()  # `out` itself, unless it is of 16 bits
        rows = self._boxes.block_rows
        for start in range(0, len(out), rows):
            block = slice(start, start + rows)
            self._swap(groups, merged[block].numpy(), lse[block].numpy())
        if merged is not out:
            out.copy_(merged)
        self._seconds += time.perf_counter() - began

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


def open_mailboxes(name: str, groups: int, heads: int, head_dim: int) -> Mailboxes:
    """The mailboxes of one stage; every group of the stage on this host opens the same `name`."""
    size = Mailboxes.nbytes(groups, heads, head_dim)
    handle = os.open(_path(name), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(handle, size)
        return Mailboxes(memoryview(mmap.mmap(handle, size)), groups, heads, head_dim)
    finally:
        os.close(handle)


def forget_mailboxes(name: str) -> None:
    """Remove the name once everybody has opened it; the memory goes with its last user."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_path(name))


def _path(name: str) -> str:
    return f"/dev/shm/{name}"
