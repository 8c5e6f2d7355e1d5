"""A device that is asynchronous and does nothing by itself: it is told how far it has come."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from medha_actors.model.device import Device, Mark


class RecordingMark(Mark):
    """Behind `at` seconds of launched work."""

    def __init__(self, device: RecordingDevice, at: float) -> None:
        self.device = device
        self.at = at

    def wait(self) -> None:
        self.device.wait_until(self.at)

    def since(self, earlier: RecordingMark) -> float:
        assert self.device.done_s >= self.at, "the device is not there yet"
        return self.at - earlier.at


class RecordingDevice(Device):
    """Work is launched in seconds; `advance` and `finish` do it. Whoever waits inside a step
    fails: a step only launches."""

    asynchronous = True

    def __init__(self) -> None:
        self.launched_s = 0.0
        self.done_s = 0.0
        self.broken = ""
        self.waits = 0  # threads that wait now
        self._changed = threading.Condition()
        self._here = threading.local()

    @contextmanager
    def step(self) -> Iterator[None]:
        """What this thread does inside only launches."""
        self._here.stepping = True
        yield
        self._here.stepping = False

    def launch(self, seconds: float) -> None:
        with self._changed:
            self.launched_s += seconds
            self._changed.notify_all()

    def advance(self, seconds: float) -> None:
        """The device does so much of what was launched."""
        with self._changed:
            self.done_s = min(self.launched_s, self.done_s + seconds)
            self._changed.notify_all()

    def finish(self) -> None:
        self.advance(self.launched_s)

    def fail(self, reason: str) -> None:
        """As after a device-side assertion: all that waits, and all after it, raises."""
        with self._changed:
            self.broken = reason
            self._changed.notify_all()

    def until_launched(self, seconds: float) -> None:
        """Until so much has been launched in all."""
        with self._changed:
            assert self._changed.wait_for(
                lambda: self.launched_s >= seconds, timeout=30
            )

    def wait_until(self, at: float) -> None:
        assert not getattr(self._here, "stepping", False), (
            "waits for the device inside a step"
        )
        with self._changed:
            self.waits += 1
            self._changed.notify_all()
            there = self._changed.wait_for(
                lambda: self.broken or self.done_s >= at, timeout=30
            )
            self.waits -= 1
        if self.broken:
            raise RuntimeError(self.broken)
        assert there, "nobody told the device to go on"

    def until_somebody_waits(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.waits > 0, timeout=30)

    def mark(self) -> RecordingMark:
        return RecordingMark(self, self.launched_s)

    def synchronise(self) -> None:
        self.wait_until(self.launched_s)

    def aside(self):
        return nullcontext()

    def pinned(self, shape, dtype):
        return torch.empty(tuple(shape), dtype=dtype)

    def free_bytes(self) -> int:
        return 2**30

    def release(self) -> None:
        pass

    def name(self) -> str | None:
        return "a recording device"

    def obstacle(self) -> str:
        return self.broken
