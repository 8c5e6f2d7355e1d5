"""Parcel: numbers for the device, gathered on the host and sent in one copy; and the way back.

A copy out of pinned memory is queued and nobody waits for it. torch hands a pinned block out again
only after the copies that read it, so a parcel may be dropped as soon as it was sent.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

_ALIGNED: Final = 16  # bytes; where an array may begin
_TYPES: Final = {
    np.dtype(np.float64): torch.float64,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.uint8): torch.uint8,
}


class Parcel:
    """Arrays of float64, int64 and uint8."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []
        self._starts: list[int] = []
        self._size = 0

    def add(self, array: np.ndarray) -> int:
        """Put an array in; returns its place among what `send` gives."""
        self._arrays.append(array)
        self._starts.append(self._size)
        self._size += -(-array.nbytes // _ALIGNED) * _ALIGNED
        return len(self._arrays) - 1

    def send(self, device: torch.device) -> list[Tensor]:
        """The arrays on the device, as parts of one buffer."""
        host = empty_on_host(self._size, torch.uint8, device)
        buffer = host.numpy()
        for start, array in zip(self._starts, self._arrays, strict=True):
            buffer[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        sent = host.to(device, non_blocking=True)
        found = []
        for start, array in zip(self._starts, self._arrays, strict=True):
            part = sent[start : start + array.nbytes].view(_TYPES[array.dtype])
            found.append(part.view(array.shape))
        return found


class Returned:
    """A tensor's numbers on their way to the host."""

    def __init__(self, numbers: Tensor) -> None:
        """Queue the copy behind what computes `numbers` [n]."""
        self._host = empty_on_host(len(numbers), numbers.dtype, numbers.device)
        self._host.copy_(numbers, non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._arrived = torch.cuda.Event(blocking=True)
            self._arrived.record()

    def wait(self) -> np.ndarray:
        """The numbers, once they are there; any thread may wait, without holding others up."""
        if self._arrived is not None:
            self._arrived.synchronize()
        found: np.ndarray = self._host.numpy()
        return found


def empty_on_host(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory [count] that copies to and from `device` need not wait for."""
    return torch.empty(count, dtype=dtype, pin_memory=device.type == "cuda")
