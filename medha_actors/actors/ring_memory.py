"""Where the blocks and counters of a ring lie: in a device's memory, or the host's, pinned or
not. The receiving end owns them; the sending end opens them with what the Offer says."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import msgspec
import numpy as np

from medha_actors.actors.lanes import COUNTER_BYTES, Counter, Driver
from medha_actors.actors.ring import Ring
from medha_actors.actors.shared_memory import forget, shared_memory

_COUNTERS_BYTES = 4096  # a page, in front of the blocks


class Offer(msgspec.Struct, frozen=True):
    """What one end tells the other of its memory, or why it has none. `name`: of memory that
    processes of the host share; `handle`: of the device's memory, where the blocks are there."""

    obstacle: str = ""
    name: str = ""
    handle: bytes = b""
    port: int = 0


class RingMemory:
    """One end's view of a ring's memory. `driver`: of the device that reads it, None: the host
    does; `on_device`: whether the blocks are in the device's memory. Raises RuntimeError or
    OSError where that cannot be."""

    def __init__(
        self,
        blocks: int,
        block_bytes: int,
        driver: Driver | None,
        on_device: bool,
        offer: Offer | None = None,
    ) -> None:
        """`offer`: of the end that owns the memory; None: it is this one."""
        self._undo: list[Callable[[], None]] = []
        self._name = offer.name if offer else f"medha-{secrets.token_hex(12)}"
        self._owns = offer is None
        nbytes = blocks * block_bytes
        try:
            here = _COUNTERS_BYTES if on_device else _COUNTERS_BYTES + nbytes
            memory = shared_memory(self._name, here)
            host = np.frombuffer(memory, np.uint8).ctypes.data
            seen = host
            if driver is not None:
                seen = driver.register(host, here)
                self._undo.append(lambda: driver.unregister(host))
            first = seen + _COUNTERS_BYTES
            handle = b""
            if on_device:
                assert driver is not None, "memory of a device has a driver"
                first, handle = self._device_blocks(driver, nbytes, offer)
        except BaseException:
            self.free()
            raise
        self.offer = Offer(name=self._name, handle=handle)
        filled = Counter(memory, seen)
        emptied = Counter(memory[COUNTER_BYTES:], seen + COUNTER_BYTES)
        addresses = [first + number * block_bytes for number in range(blocks)]
        self.ring = Ring(addresses, block_bytes, filled, emptied)

    def _device_blocks(
        self, driver: Driver, nbytes: int, offer: Offer | None
    ) -> tuple[int, bytes]:
        """The first block's address, and the handle for the other end."""
        if offer is None:
            mine = driver.allocate(nbytes)
            self._undo.append(lambda: driver.release(mine))
            return mine, driver.handle(mine)
        theirs = driver.open(offer.handle)
        self._undo.append(lambda: driver.close(theirs))
        return theirs, offer.handle

    def forget(self) -> None:
        """Nobody will open it any more."""
        forget(self._name)

    def free(self) -> None:
        """Give everything back; nobody uses it any more."""
        if self._owns:
            self.forget()
        undo = self._undo
        self._undo = []
        for step in reversed(undo):
            step()
