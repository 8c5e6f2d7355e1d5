"""Doors: an error that nobody foresaw ends the process, and whoever watches it makes it anew.

Every callback and task of an actor's loops goes through one. The state behind a door is not to be
trusted after such an error, so it is not kept; a log line alone would leave a process that hangs
and looks healthy.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn, ParamSpec, TypeVar

_log = logging.getLogger("medha.controller")
_EXIT_STATUS = 70  # EX_SOFTWARE
P = ParamSpec("P")
T = TypeVar("T")


def crash_only(work: Callable[P, T]) -> Callable[P, T]:
    """A function whose unforeseen errors end the process."""

    @functools.wraps(work)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return work(*args, **kwargs)
        except Exception:
            crash(f"{work.__qualname__} failed")

    return guarded


def crash_only_task(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task whose unforeseen errors end the process."""

    async def guarded() -> None:
        try:
            await work
        except Exception:
            crash(f"{getattr(work, '__qualname__', 'a task')} failed")

    return asyncio.create_task(guarded())


def crash(reason: str) -> NoReturn:
    """Log the error at hand and end this process."""
    _log.critical("%s; this process ends", reason, exc_info=True)
    logging.shutdown()
    os._exit(_EXIT_STATUS)
