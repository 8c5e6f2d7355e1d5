"""Finisher: the thread that waits for an asynchronous device, while the one that computes launches
the next step."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import torch

from medha_actors.errors import LinkClosedError
from medha_actors.model.device import Device

_log = logging.getLogger("medha.stage")
_AT_ONCE: Final = 2  # one that the device computes, and one behind it
T = TypeVar("T")


class Finisher(Generic[T]):
    """Finishes, in order, what was launched. Never more than two are unfinished.

    An error ends it as one ends the thread that computes: the links are closed.
    """

    def __init__(
        self,
        name: str,
        device: Device,
        finish: Callable[[T], None],
        close: Callable[[], None],
    ) -> None:
        """`finish`: called for each; `close`: called at the end, from this thread."""
        self._name = name
        self._device = device
        self._finish = finish
        self._close = close
        self._launched: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(_AT_ONCE)
        self._ended = False
        self._thread = threading.Thread(
            target=self._run, name="stage-finisher", daemon=True
        )
        self._thread.start()

    def reserve(self) -> None:
        """Wait until one more may be launched; raises LinkClosedError when none will be
        finished."""
        self._room.acquire()
        if self._ended:
            raise LinkClosedError("nobody finishes what is launched")

    def put(self, launched: T) -> None:
        """After `reserve`."""
        self._launched.put(launched)

    def stop(self) -> None:
        """Wait for what was launched, and end."""
        self._launched.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            with torch.inference_mode(), self._device.aside():
                while (launched := self._launched.get()) is not None:
                    self._finish(launched)
                    self._room.release()
        except LinkClosedError as error:
            _log.info("%s stops: %s", self._name, error.message)
        except Exception:
            _log.exception("%s failed", self._name)
        finally:
            self._ended = True
            self._close()
            self._room.release()
