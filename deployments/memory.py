"""Giving memory back to the operating system after large requests.

glibc keeps freed memory in the arenas of the threads that used it: after a text of a million tokens
250 MB stay with the process, and `malloc_trim` returns all of it in 30 ms (without the GIL).
"""

from __future__ import annotations

import asyncio
import ctypes
from typing import Final

# of request bodies; what they became was several times as much
_WORTH_BYTES: Final = 4 * 2**20
_DELAY_S: Final = 0.5


class MemoryReturn:
    """`used` tells of work that is over; memory is returned soon after, once for many."""

    def __init__(self) -> None:
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._trimming: asyncio.Future[object] | None = None
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only

    def used(self, size: int) -> None:
        """A request with a body of `size` bytes has been worked on."""
        if self._trim is None:
            return
        self._bytes += size
        if self._bytes >= _WORTH_BYTES and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(
                _DELAY_S, self._give_back
            )

    def _give_back(self) -> None:
        self._timer = None
        self._bytes = 0
        assert self._trim is not None
        loop = asyncio.get_running_loop()
        self._trimming = loop.run_in_executor(None, self._trim, 0)
