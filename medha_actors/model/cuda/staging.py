"""Brings numbers from the host to one place on the device without waiting: pinned slabs in turn, of
which an event tells when the copy out of it is over."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_SLABS: Final = 3


class Slab:
    """A host buffer."""

    def __init__(self, size: int, dtype: torch.dtype, pinned: bool) -> None:
        self.tensor = torch.empty(size, dtype=dtype, pin_memory=pinned)
        self.array = self.tensor.numpy()
        self._copied = torch.cuda.Event() if pinned else None

    def wait(self) -> None:
        """Until it may be written: at once, unless the device is steps behind."""
        if self._copied is not None and not self._copied.query():
            self._copied.synchronize()

    def send(self, there: Tensor) -> None:
        """Begin to copy its first numbers to the device."""
        there.copy_(self.tensor[: len(there)], non_blocking=True)
        if self._copied is not None:
            self._copied.record()


class Staging:
    """Slabs, and the place on the device that all of them are copied to: on one stream, so that
    what reads it has read it before the next copy."""

    def __init__(self, device: torch.device, size: int, dtype: torch.dtype) -> None:
        self.size = size
        self.there = torch.empty(size, dtype=dtype, device=device)
        self._slabs = [Slab(size, dtype, device.type == "cuda") for _ in range(_SLABS)]
        self._next = 0

    def slab(self) -> Slab:
        """The next one to be filled and sent."""
        slab = self._slabs[self._next]
        self._next = (self._next + 1) % _SLABS
        slab.wait()
        return slab
