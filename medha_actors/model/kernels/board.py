"""Board in shared memory: where the ranks of a team lay open what each has, for all others to read.

Each rank has a counter and two buffers used in turn. In a round every rank fills its buffer, raises
its counter to the round's number, and waits for all other counters. Two buffers are enough: a rank
can only be one round ahead of another, because each round waits for all. A buffer is a head of 64
bytes and rows of float32, or any bytes.
"""

# ruff: noqa: ANN001, ANN201, ANN202  (compiled functions take integers and arrays)
from __future__ import annotations

import numpy as np

from medha_actors.model.kernels.counters import COUNTER_BYTES, store, wait
from medha_actors.model.kernels.ir import compiled

_HEAD_FLOATS = 16  # of a buffer: 64 bytes, the first 8 for a length
_ROWS_BYTES = 1 << 20  # of one buffer, about; more goes in several rounds


@compiled
def add_parts(x, floats, starts):
    """x += the sum of the parts in their order; x float32 [rows, width], the parts begin at
    `starts` (in floats)."""
    rows, width = x.shape
    total = np.empty(width, np.float32)
    for row in range(rows):
        place = row * width
        total[:] = floats[starts[0] + place : starts[0] + place + width]
        for start in starts[1:]:
            total += floats[start + place : start + place + width]
        x[row] += total


@compiled
def _raise(counter, number):
    store(counter, number)


class Board:
    """The buffers of `ranks` ranks, laid over one piece of memory (see `nbytes`).

    `floats`: all of it; `counters`: their addresses, int64 [ranks]; `buffers`: where the rows of
    each rank's two buffers begin, in floats, int64 [2, ranks].
    """

    def __init__(self, memory: memoryview, ranks: int, width: int) -> None:
        """`width`: floats of a row."""
        self.ranks = ranks
        self.width = width
        self.block_rows = block_rows(width)
        self.floats = np.frombuffer(memory, np.float32)
        self._bytes = np.frombuffer(memory, np.uint8)
        buffer = _HEAD_FLOATS + self.block_rows * width
        each = COUNTER_BYTES // 4 + 2 * buffer
        first = np.arange(ranks, dtype=np.int64) * each
        rows = first + COUNTER_BYTES // 4 + _HEAD_FLOATS
        self.counters = self.floats.ctypes.data + 4 * first
        self.buffers = np.stack((rows, rows + buffer))

    @staticmethod
    def nbytes(ranks: int, width: int) -> int:
        """Memory that the board of so many ranks needs."""
        return ranks * (COUNTER_BYTES + 8 * (_HEAD_FLOATS + block_rows(width) * width))

    @property
    def capacity(self) -> int:
        """Bytes that one buffer holds."""
        return 4 * self.block_rows * self.width

    def put_rows(self, rank: int, number: int, rows: np.ndarray) -> None:
        """A rank's float32 rows for a round; at most block_rows of them."""
        start = self.buffers[number & 1, rank]
        self.floats[start : start + rows.size] = rows.reshape(-1)
        _raise(self.counters[rank], number)

    def put_bytes(self, rank: int, number: int, total: int, part: np.ndarray) -> None:
        """A rank's bytes for a round: a part of `total` in all."""
        start = 4 * self.buffers[number & 1, rank]
        self._length(start)[0] = total
        self._bytes[start : start + part.size] = part
        _raise(self.counters[rank], number)

    def bytes_of(self, rank: int, number: int, taken: int) -> tuple[int, np.ndarray]:
        """What a rank has put: its total, and the part that follows the `taken` bytes before."""
        start = 4 * self.buffers[number & 1, rank]
        total = int(self._length(start)[0])
        size = min(max(total - taken, 0), self.capacity)
        return total, self._bytes[start : start + size]

    def add_rows(self, number: int, rows: np.ndarray) -> None:
        """Add the sum of all ranks' rows of a round to `rows`."""
        add_parts(rows, self.floats, self.buffers[number & 1])

    def wait(self, number: int, spins: int) -> bool:
        """Until every rank has put what it has for a round; False: not within that many looks."""
        return bool(wait(self.counters, np.full(self.ranks, number), spins))

    def _length(self, start: int) -> np.ndarray:
        head = start - 4 * _HEAD_FLOATS
        return self._bytes[head : head + 8].view(np.int64)


def block_rows(width: int) -> int:
    """Rows that one buffer holds: a multiple of 16, so that counters stay aligned."""
    return max(16, _ROWS_BYTES // (4 * width) // 16 * 16)
