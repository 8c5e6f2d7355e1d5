"""Memory that actors of one host share under a name."""

from __future__ import annotations

import contextlib
import mmap
import os


def shared_memory(name: str, nbytes: int) -> memoryview:
    """The memory of this name; whoever opens it first finds zeros. Raises OSError where there is no
    room for it: whoever wrote beyond would be killed."""
    handle = os.open(_path(name), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.ftruncate(handle, nbytes)
        os.posix_fallocate(handle, 0, nbytes)
        return memoryview(mmap.mmap(handle, nbytes))
    finally:
        os.close(handle)


def forget(name: str) -> None:
    """Remove the name once everybody has opened it; the memory goes with its last user."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_path(name))


def _path(name: str) -> str:
    return f"/dev/shm/{name}"
