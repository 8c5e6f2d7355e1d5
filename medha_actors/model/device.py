"""Device: what computes a stage's tensors, as those see it who wait for it, time it and measure its
memory.

A CPU is done when a call returns. A GPU is asynchronous: a call only launches work, which it does
in order; so instants are marks in that order, and seconds lie between two marks.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor


class Mark(ABC):
    """An instant in a device's order of work."""

    @abstractmethod
    def wait(self) -> None:
        """Until the device is there."""

    @abstractmethod
    def since(self, earlier: Any) -> float:
        """The device's seconds from an earlier mark to this one; it has to be past both."""


class Device(ABC):
    """`asynchronous`: whether work goes on after the call that has launched it."""

    asynchronous: bool

    @abstractmethod
    def mark(self) -> Mark:
        """Behind all that this thread has launched so far."""

    @abstractmethod
    def synchronise(self) -> None:
        """Wait for all that was launched."""

    @abstractmethod
    def aside(self) -> AbstractContextManager[Any]:
        """What a thread launches inside does not wait for what others have launched."""

    @abstractmethod
    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Host memory that the device copies to and from by itself."""

    @abstractmethod
    def free_bytes(self) -> int:
        """Memory that nobody has taken, whoever shares the device."""

    @abstractmethod
    def release(self) -> None:
        """Give back memory that is kept for later and holds nothing."""

    @abstractmethod
    def name(self) -> str | None:
        """Of the GPU; None: a CPU."""

    def usual_dtype(self) -> str:
        """What activations are computed in where the configuration leaves it open."""
        return "bfloat16"

    @abstractmethod
    def obstacle(self) -> str:
        """Why it cannot compute, in one line; empty: it can. Never raises."""


class _Instant(Mark):
    def __init__(self) -> None:
        self.at = time.perf_counter()

    def wait(self) -> None:
        pass

    def since(self, earlier: _Instant) -> float:
        return self.at - earlier.at


class Host(Device):
    """The CPU."""

    asynchronous = False

    def mark(self) -> Mark:
        return _Instant()

    def synchronise(self) -> None:
        pass

    def aside(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype)

    def free_bytes(self) -> int:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

    def release(self) -> None:
        pass

    def name(self) -> str | None:
        return None

    def usual_dtype(self) -> str:
        """bfloat16 where it is multiplied fast: on AVX2 by our kernels."""
        fast = torch.backends.cpu.get_cpu_capability().startswith("AVX")
        return "bfloat16" if fast else "float32"

    def obstacle(self) -> str:
        return ""


HOST: Final = Host()


class _Event(Mark):
    def __init__(self) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record()

    def wait(self) -> None:
        self.event.synchronize()

    def since(self, earlier: _Event) -> float:
        milliseconds: float = earlier.event.elapsed_time(self.event)
        return milliseconds / 1000


class Cuda(Device):
    """The one GPU that this process sees."""

    asynchronous = True

    def mark(self) -> Mark:
        return _Event()

    def synchronise(self) -> None:
        torch.cuda.synchronize()

    def aside(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(torch.cuda.Stream())

    def pinned(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def free_bytes(self) -> int:
        free: int = torch.cuda.mem_get_info()[0]
        return free

    def release(self) -> None:
        torch.cuda.empty_cache()

    def name(self) -> str | None:
        name: str = torch.cuda.get_device_name()
        return name

    def obstacle(self) -> str:
        if not torch.cuda.is_available():
            return (
                f"torch {torch.__version__} cannot use the GPU: it takes a build for the driver's "
                "CUDA (https://pytorch.org/get-started), or actors.device: cpu"
            )
        try:
            torch.cuda.synchronize()
            torch.cuda.mem_get_info()
        except (
            Exception
        ) as error:  # an error of the device stays until the process ends
            return f"the GPU has failed: {str(error).strip().partition(chr(10))[0]}"
        return ""


def device_of(kind: str) -> Device:
    """The device of this process: "cpu" or "cuda"."""
    return Cuda() if kind == "cuda" else HOST


class Lap(NamedTuple):
    """Pairs of marks, from one to the other each time."""

    pairs: tuple[tuple[Mark, Mark], ...] = ()

    def seconds(self) -> float:
        """Of all pairs; the device has to be past them."""
        return sum([ended.since(began) for began, ended in self.pairs])


class Watch:
    """Times one kind of work within steps, on the device's clock."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._pairs: list[tuple[Mark, Mark]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """What is launched inside counts."""
        began = self._device.mark()
        yield
        self._pairs.append((began, self._device.mark()))

    def take(self) -> Lap:
        """What has been launched since the last call."""
        lap = Lap(tuple(self._pairs))
        self._pairs.clear()
        return lap
