"""Brings parts of files to the device: several readers fill pinned buffers, and each buffer is on
its way while the next one is read."""

from __future__ import annotations

import os
import queue
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from medha_actors.errors import ModelError
from medha_actors.files.stored import Stored
from medha_actors.model.cuda.staging import Slab

_READERS: Final = 6
_CHUNK: Final = 16 << 20  # bytes


class Uploader:
    """Copies in a stream of its own, which the caller's stream waits for."""

    def __init__(self, device: torch.device, chunk: int = _CHUNK) -> None:
        """`chunk`: bytes that are read and sent together."""
        self.device = device
        self.bytes = 0  # brought so far
        self._chunk = chunk
        on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None
        self._readers = ThreadPoolExecutor(_READERS, "weights")
        self._slabs: queue.SimpleQueue[Slab] = queue.SimpleQueue()
        for _ in range(2 * _READERS):
            self._slabs.put(Slab(chunk, torch.uint8, on_gpu))
        self._opened: dict[Path, int] = {}

    def bring(self, stored: Stored) -> Tensor:
        """The bytes, uint8 [size], for whatever is launched after the return. Raises
        ModelError."""
        path, offset, size = stored
        there = torch.empty(size, dtype=torch.uint8, device=self.device)
        if self._stream is not None:  # what used this memory before is done first
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
        try:
            file = self._open(path)
            jobs = []
            for first in range(0, size, self._chunk):
                part = there[first : first + self._chunk]
                jobs.append(
                    self._readers.submit(self._part, file, offset + first, part)
                )
            for job in jobs:
                job.result()
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error}") from error
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
        self.bytes += size
        return there

    def close(self) -> None:
        """Give back buffers and files."""
        self._readers.shutdown()
        for file in self._opened.values():
            os.close(file)

    def _open(self, path: Path) -> int:
        if path not in self._opened:
            self._opened[path] = os.open(path, os.O_RDONLY)
        return self._opened[path]

    def _part(self, file: int, offset: int, there: Tensor) -> None:
        """In one of the readers' threads."""
        slab = self._slabs.get()
        try:
            slab.wait()
            _read(file, offset, memoryview(slab.array.data)[: len(there)])
            aside = (
                nullcontext()
                if self._stream is None
                else torch.cuda.stream(self._stream)
            )
            with torch.inference_mode(), aside:
                slab.send(there)
        finally:
            self._slabs.put(slab)


def _read(file: int, offset: int, into: memoryview) -> None:
    done = 0
    while done < len(into):
        more = os.preadv(file, [into[done:]], offset + done)
        if not more:
            raise OSError(f"it ends at byte {offset + done}")
        done += more
