"""Lookout: notices that the other end of a link is gone while nobody reads from it, and lets go
whatever waits for it elsewhere: in a GPU's queue, in a communicator."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Protocol

from medha_actors.errors import LinkClosedError

_log = logging.getLogger("medha.links")
_AGAIN_S = 0.002


class HasDescriptor(Protocol):
    """A Link, which is made after this."""

    def fileno(self) -> int: ...


class Waiting(ABC):
    """Something in which this process may wait for another one."""

    @abstractmethod
    def release(self) -> bool:
        """Let go what waits; True: nothing does any more. Called again until then; once it has
        been called, whoever would wait gets LinkClosedError (`Lookout.require_whole`)."""

    @abstractmethod
    def free(self) -> None:
        """Give back what it holds; called once, after `release` has been True."""


class Lookout:
    """Over the links of one actor: when one breaks, all are as good as broken, for what is computed
    from then on may be worthless. A thread of its own ends with them."""

    def __init__(self, links: Iterable[HasDescriptor]) -> None:
        self.broken = False
        self._waiting: list[Waiting] = []
        self._ended = False
        self._lock = threading.Lock()
        # Descriptors of its own: those of the links may be closed, and given to others, any time.
        self._ends = [os.dup(link.fileno()) for link in links]
        self._thread = threading.Thread(
            target=self._run, name="link-lookout", daemon=True
        )
        self._thread.start()

    def add(self, waiting: Waiting) -> None:
        """Release and free this when a link breaks."""
        with self._lock:
            self._waiting.append(waiting)
            if self._ended:
                self._end_all()

    def drop(self, waiting: Waiting) -> None:
        """Release and free this now."""
        with self._lock:
            if waiting in self._waiting:  # no link has broken meanwhile
                self._waiting.remove(waiting)
                _end([waiting])

    def require_whole(self) -> None:
        """Raises LinkClosedError once a link has broken."""
        if self.broken:
            raise LinkClosedError("the peer of a link is gone")

    def join(self, timeout_s: float) -> bool:
        """Wait until all has been freed; False: not in that time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        ends = select.poll()
        for end in self._ends:
            ends.register(end, select.POLLRDHUP)
        ends.poll()
        self.broken = True
        for end in self._ends:
            os.close(end)
        with self._lock:
            self._ended = True
            self._end_all()

    def _end_all(self) -> None:
        _end(self._waiting)
        self._waiting = []


def _end(waiting: list[Waiting]) -> None:
    left = waiting
    while left := [one for one in left if not one.release()]:
        time.sleep(_AGAIN_S)
    for one in waiting:
        try:
            one.free()
        except (
            RuntimeError
        ) as error:  # of a device that has failed, and goes with this process
            _log.warning("what a link held was not given back: %s", error)
