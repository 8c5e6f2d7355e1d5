"""Lanes: who moves the bytes of one direction of a ring, and keeps its two counters.

A HostLane does so at once, in the thread that asks. A QueueLane only queues it on a device, which
waits for counters by itself: the host never does.
"""

from __future__ import annotations

import ctypes
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medha_actors.actors.lookout import Lookout

COUNTER_BYTES = 64  # so that no two share a cache line
_WORD = 1 << 32
_SPINS = 200  # looks at a counter before the thread offers its core to others
_TURNS = 50  # offers before it sleeps between looks
_SLEEP_S = 0.0002


class Counter:
    """A number of 32 bits, in memory that both ends of a ring see, which only grows, and begins
    again at 0 behind the last one. `address`: for the device's queue."""

    def __init__(self, memory: memoryview, address: int) -> None:
        self._cell = np.frombuffer(memory[:4], np.uint32)
        self.address = address

    def reached(self, number: int) -> bool:
        """Whether it is at this number, or at most 2^31 behind it."""
        return (int(self._cell[0]) - number) % _WORD < _WORD // 2

    def set(self, number: int) -> None:
        self._cell[0] = number % _WORD


class Lane(ABC):
    """Of one direction; used by one thread at a time."""

    @abstractmethod
    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor to fill."""

    @abstractmethod
    def begin(self, tensor: Tensor) -> None:
        """What comes now reads or fills this tensor, behind what was queued for it before."""

    @abstractmethod
    def end(self, tensor: Tensor) -> None:
        """What is queued elsewhere from now on comes behind what filled this tensor."""

    @abstractmethod
    def copy(self, to: int, source: int, nbytes: int) -> None:
        """Between addresses."""

    @abstractmethod
    def raise_to(self, counter: Counter, number: int) -> None:
        """Set a counter, behind all copies."""

    @abstractmethod
    def wait(self, counter: Counter, number: int) -> None:
        """Go on when a counter has reached a number. Raises LinkClosedError."""

    @abstractmethod
    def idle(self) -> bool:
        """Whether all that was asked for is done."""


def copy_on_host(to: int, source: int, nbytes: int) -> None:
    ctypes.memmove(to, source, nbytes)


class HostLane(Lane):
    """Everything at once; waiting is spinning. `copy` is done when it returns. Relies on a
    processor that shows writes to others in their order."""

    def __init__(
        self,
        device: torch.device,
        lookout: Lookout,
        copy: Callable[[int, int, int], None] = copy_on_host,
    ) -> None:
        self._device = device
        self._lookout = lookout
        self._copy = copy

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, device=self._device)

    def begin(self, tensor: Tensor) -> None:
        pass

    def end(self, tensor: Tensor) -> None:
        pass

    def copy(self, to: int, source: int, nbytes: int) -> None:
        self._copy(to, source, nbytes)

    def raise_to(self, counter: Counter, number: int) -> None:
        counter.set(number)

    def wait(self, counter: Counter, number: int) -> None:
        looks = 0
        while not counter.reached(number):
            looks += 1
            if looks % _SPINS == 0 or looks > _SPINS * _TURNS:
                self._lookout.require_whole()
                if looks < _SPINS * _TURNS:
                    os.sched_yield()
                else:
                    time.sleep(_SLEEP_S)

    def idle(self) -> bool:
        return True


class Driver(ABC):
    """What a QueueLane needs of a device. A queue is a stream of CUDA. Errors are RuntimeErrors."""

    device: torch.device

    @abstractmethod
    def queue(self) -> Any:
        """A new queue."""

    @abstractmethod
    def current(self) -> Any:
        """The queue that torch fills in this thread."""

    @abstractmethod
    def follow(self, queue: Any, other: Any) -> None:
        """What is queued on `queue` from now on comes behind all that is on `other`."""

    @abstractmethod
    def idle(self, queue: Any) -> bool:
        """Whether all on it is done."""

    @abstractmethod
    def empty(self, shape: Sequence[int], dtype: torch.dtype, queue: Any) -> Tensor:
        """A tensor whose memory nothing uses that is not on `queue`."""

    @abstractmethod
    def keep(self, tensor: Tensor, queue: Any) -> None:
        """Its memory is not given to others before what is on `queue` by then is done."""

    @abstractmethod
    def copy(self, to: int, source: int, nbytes: int, queue: Any) -> None: ...

    @abstractmethod
    def write(self, address: int, number: int, queue: Any) -> None:
        """Write a number of 32 bits, behind all that was written before."""

    @abstractmethod
    def wait(self, address: int, number: int, queue: Any) -> None:
        """Go on when the number at this address is there or at most 2^31 behind it."""

    @abstractmethod
    def allocate(self, nbytes: int) -> int:
        """Memory of the device that other processes may open; returns its address."""

    @abstractmethod
    def release(self, address: int) -> None:
        """Give back what was allocated."""

    @abstractmethod
    def handle(self, address: int) -> bytes:
        """What others open allocated memory with."""

    @abstractmethod
    def open(self, handle: bytes) -> int:
        """The address, here, of another process's memory."""

    @abstractmethod
    def close(self, address: int) -> None:
        """Give back what was opened."""

    @abstractmethod
    def register(self, address: int, nbytes: int) -> int:
        """Pin memory of the host; returns its address for the device."""

    @abstractmethod
    def unregister(self, address: int) -> None:
        """Let pinned memory of the host go."""


class QueueLane(Lane):
    """On a queue of its own if `aside` (beside the computing), else on the one that torch fills."""

    def __init__(self, driver: Driver, lookout: Lookout, aside: bool) -> None:
        self._driver = driver
        self._lookout = lookout
        self._aside = driver.queue() if aside else None
        self._queue: Any = self._aside

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        self._turn()
        return self._driver.empty(shape, dtype, self._queue)

    def begin(self, tensor: Tensor) -> None:
        self._turn()
        if self._aside is not None:
            self._driver.follow(self._aside, self._driver.current())
            self._driver.keep(tensor, self._aside)

    def end(self, tensor: Tensor) -> None:
        if self._aside is not None:
            current = self._driver.current()
            self._driver.follow(current, self._aside)
            self._driver.keep(tensor, current)

    def copy(self, to: int, source: int, nbytes: int) -> None:
        self._driver.copy(to, source, nbytes, self._queue)

    def raise_to(self, counter: Counter, number: int) -> None:
        self._driver.write(counter.address, number % _WORD, self._queue)

    def wait(self, counter: Counter, number: int) -> None:
        self._lookout.require_whole()
        if not counter.reached(
            number
        ):  # the host sees it too, and need not trouble the device
            self._driver.wait(counter.address, number % _WORD, self._queue)

    def idle(self) -> bool:
        return self._queue is None or self._driver.idle(self._queue)

    def _turn(self) -> None:
        """To the queue that torch fills now, behind the one before."""
        if self._aside is not None:
            return
        current = self._driver.current()
        if self._queue is not None and self._queue != current:
            self._driver.follow(current, self._queue)
        self._queue = current
