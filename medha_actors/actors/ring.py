"""Ring: one direction of a transport through memory that both ends see, some blocks used in turn.

The sender fills a block when the receiver has emptied it and raises `filled`, the receiver waits
for that, copies, and raises `emptied`. Nothing else is said, so a device can do it without the
host.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from medha_actors.actors.lanes import Counter, Lane
from medha_actors.actors.lookout import Lookout
from medha_actors.actors.transports import Transport

_POLL_S = 0.0005
_FAR = 1 << 20  # further than either end ever waits ahead


class Ring:
    """What both ends know. `blocks`: their addresses, here."""

    def __init__(
        self, blocks: Sequence[int], block_bytes: int, filled: Counter, emptied: Counter
    ) -> None:
        self.blocks = blocks
        self.block_bytes = block_bytes
        self.filled = filled
        self.emptied = emptied


class _End:
    """Of a ring: `number`: of the last block used."""

    def __init__(self, ring: Ring, lane: Lane) -> None:
        self.ring = ring
        self.lane = lane
        self.number = 0
        self.lock = threading.Lock()  # while work is queued

    def parts(self, nbytes: int) -> list[tuple[int, int, int]]:
        """Where a tensor's bytes go: for each block its number, the first byte, how many."""
        size = self.ring.block_bytes
        found = []
        for start in range(0, nbytes, size):
            self.number += 1
            found.append((self.number, start, min(size, nbytes - start)))
        return found

    def address(self, number: int) -> int:
        blocks = self.ring.blocks
        return blocks[number % len(blocks)]


class Sender(_End):
    """The end that fills blocks."""

    def send(self, tensor: Tensor) -> None:
        """Of any size, contiguous."""
        lane = self.lane
        ring = self.ring
        lane.begin(tensor)
        source = tensor.data_ptr()
        for number, start, nbytes in self.parts(tensor.nbytes):
            lane.wait(ring.emptied, number - len(ring.blocks))
            lane.copy(self.address(number), source + start, nbytes)
            lane.raise_to(ring.filled, number)

    def release(self) -> bool:
        self.ring.emptied.set(self.number + _FAR)
        with self.lock:
            return self.lane.idle()


class Receiver(_End):
    """The end that empties them."""

    def fill(self, tensor: Tensor) -> None:
        """With as many bytes as it has; contiguous."""
        lane = self.lane
        ring = self.ring
        to = tensor.data_ptr()
        for number, start, nbytes in self.parts(tensor.nbytes):
            lane.wait(ring.filled, number)
            lane.copy(to + start, self.address(number), nbytes)
            lane.raise_to(ring.emptied, number)
        lane.end(tensor)

    def release(self) -> bool:
        self.ring.filled.set(self.number + _FAR)
        with self.lock:
            return self.lane.idle()


class RingTransport(Transport):
    """A ring for each direction, or for one."""

    def __init__(
        self,
        kind: str,
        device: torch.device,
        lookout: Lookout,
        sender: Sender | None,
        receiver: Receiver | None,
        free: Callable[[], None],
    ) -> None:
        self.kind = kind
        self.device = device
        self._lookout = lookout
        self._sender = sender
        self._receiver = receiver
        self._free = free
        rings = [end.ring for end in (sender, receiver) if end is not None]
        # Of two puts, the last blocks may not be full.
        self.room = min((len(ring.blocks) - 2) * ring.block_bytes for ring in rings)

    def send(self, tensor: Tensor) -> None:
        assert self._sender is not None, "this direction was not asked for"
        with self._sender.lock:
            self._lookout.require_whole()
            self._sender.send(tensor.contiguous())

    def receive(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        assert self._receiver is not None, "this direction was not asked for"
        with self._receiver.lock:
            self._lookout.require_whole()
            tensor = self._receiver.lane.empty(shape, dtype)
            self._receiver.fill(tensor)
        return tensor

    def put(self, tensor: Tensor) -> None:
        self.send(tensor)

    def take(self, into: Tensor) -> None:
        assert self._receiver is not None, "this direction was not asked for"
        with self._receiver.lock:
            self._lookout.require_whole()
            self._receiver.lane.begin(into)
            self._receiver.fill(into)

    def settled(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not all(end.lane.idle() for end in self._ends()):
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True

    def release(self) -> bool:
        released = [end.release() for end in self._ends()]
        return all(released)

    def free(self) -> None:
        self._free()

    def _ends(self) -> list[Sender | Receiver]:
        return [end for end in (self._sender, self._receiver) if end is not None]
