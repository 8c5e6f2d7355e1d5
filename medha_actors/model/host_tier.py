"""The second tier of a stage: slots in host memory or in a file, each with a page's keys and values
of all the stage's layers. Which page goes to which slot is the scheduler's business
(medha_actors.core.page_slots)."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medha_actors.errors import ModelError
from medha_actors.messages import Move

SUFFIX = ".kv"
_HEAD = 4096  # bytes before the slots


class HostTier:
    """Moves pages between the KV cache and the slots, bit for bit and in the order given.

    On a GPU the copies run on a stream of their own. The kernels of a step wait for what is saved
    in it, because they write to those pages; what is loaded in it is first read by the next step,
    which waits for it.
    """

    def __init__(
        self, cells: Sequence[Tensor], slots: int, file: SlotFile | None = None
    ) -> None:
        """`cells`: see Decoder.cells; `file`: where the slots are; None: in memory."""
        self.file = file  # holds the lock
        self._cells = [cell.flatten(2) for cell in cells]
        sizes = [len(cell) * cell[0, 0].nbytes for cell in self._cells]
        device = cells[0].device
        if file is None:
            memory = _memory(slots * sum(sizes), pinned=device.type == "cuda")
        else:
            memory = file.memory
        parts = memory.view(slots, sum(sizes)).split(sizes, 1)
        self._places = [
            part.view(cell.dtype).view(slots, len(cell), -1)
            for part, cell in zip(parts, self._cells, strict=True)
        ]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def carry_out(self, moves: Sequence[Move]) -> None:
        """Before a step's own work: what it has to save and to load; nothing where there is
        nothing."""
        if self._stream is None:
            self._copy(moves)
            return
        computing = torch.cuda.current_stream(self._stream.device)
        computing.wait_stream(self._stream)  # for what the step before has loaded
        self._stream.wait_stream(computing)
        with torch.cuda.stream(self._stream):
            last = max(
                [place for place, move in enumerate(moves, 1) if not move.load],
                default=0,
            )
            self._copy(moves[:last])
            computing.wait_stream(self._stream)
            self._copy(moves[last:])

    def wait(self) -> None:
        """Until everything is where it belongs."""
        if self._stream is not None:
            self._stream.synchronize()

    def _copy(self, moves: Sequence[Move]) -> None:
        for move in moves:
            for cell, place in zip(self._cells, self._places, strict=True):
                if move.load:
                    cell[:, move.page].copy_(place[move.slot], non_blocking=True)
                else:
                    place[move.slot].copy_(cell[:, move.page], non_blocking=True)


class SlotFile:
    """A memory-mapped file of slots. It is locked as long as its process lives, and outlives it.

    `mark`: whose contents these are, as it was signed last; nothing in a new file.
    """

    def __init__(self, folder: Path, name: str, count: int) -> None:
        """`name`: of the server's run, then a dash and the cell's; files of runs that nobody is
        part of any more are removed. `count`: of bytes."""
        path = folder / (name + SUFFIX)
        with ExitStack() as undo:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _sweep(folder, name.split("-", maxsplit=1)[0])
                self._file = os.fdopen(
                    os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b"
                )
                undo.callback(self._file.close)
                _claim(self._file.fileno(), _HEAD + count)
            except OSError as error:
                raise ModelError(
                    f"kv_cache.disk: {path} of {count} bytes: {error}"
                ) from None
            undo.pop_all()
        mapped = np.memmap(path, np.uint8, "r+", shape=(_HEAD + count,))
        self._head = mapped[:_HEAD]
        self.memory = torch.from_numpy(mapped[_HEAD:])

    @property
    def mark(self) -> str:
        return self._head.tobytes().rstrip(b"\0").decode()

    def sign(self, mark: str) -> None:
        """From now on these contents are known by this."""
        self._head[:] = np.frombuffer(mark.encode().ljust(_HEAD, b"\0"), np.uint8)

    def close(self) -> None:
        """Let others have it."""
        self._file.close()


def _claim(file: int, count: int) -> None:
    """Lock a file, and empty it if it is not of this size."""
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if os.fstat(file).st_size == count:
        return
    os.ftruncate(file, 0)
    disk = os.fstatvfs(file)
    if count > disk.f_bavail * disk.f_frsize:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.posix_fallocate(file, 0, count)  # now: a page without room would end the process


def _sweep(folder: Path, run: str) -> None:
    """Remove the files of other runs that no process holds."""
    for path in folder.glob("*-*" + SUFFIX):
        if path.name.startswith(run + "-"):
            continue
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def page_bytes(cells: Sequence[Tensor]) -> int:
    """Of one slot."""
    return sum([len(cell) * cell[0, 0].nbytes for cell in cells])


def _memory(count: int, pinned: bool) -> Tensor:
    """Bytes of host memory, which an unpinned tier takes only when they are first written."""
    if pinned:
        return torch.empty(count, dtype=torch.uint8, pin_memory=True)
    return torch.from_numpy(np.zeros(count, np.uint8))
