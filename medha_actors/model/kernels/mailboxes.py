"""Mailboxes in shared memory: how KV groups on one host swap partial attention within microseconds
(paper, 3.3).

A mailbox is for one ordered pair of groups: a counter (64 bytes, so that no two share a cache line)
and two buffers used in turn. A buffer holds out [rows, heads, head_dim] and behind it lse [rows,
heads], float32. The writer fills the buffer and then raises the counter; the reader waits for the
counter. Two buffers are enough: a writer can only be one swap ahead of its reader, because each
swap waits for the other side's data.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medha_actors.model.kernels.counters import COUNTER_BYTES, store, wait
from medha_actors.model.kernels.ir import compiled

_BLOCK_BYTES = (
    1 << 20
)  # of one buffer, about; larger swaps go in several blocks of rows


def _post(out, lse, floats, start, counter, number):  # noqa: ANN001, ANN202
    """Fill the buffer at `start` (in floats) and raise the counter (an address) to `number`."""
    size = out.size
    floats[start : start + size] = out.reshape(-1)
    floats[start + size : start + size + lse.size] = lse.reshape(-1)
    store(counter, number)


def _merge(out, lse, floats, starts):  # noqa: ANN001, ANN202
    """Replace `out` by the attention over all pieces. starts: each group's buffer in order, -1: out
    and lse itself."""
    rows, heads, dims = out.shape
    behind = rows * heads * dims
    for row in range(rows):
        for head in range(heads):
            cell = row * heads + head
            peak = -np.inf
            for start in starts:
                peak = max(
                    peak, lse[row, head] if start < 0 else floats[start + behind + cell]
                )
            if peak == -np.inf:  # nobody saw anything
                out[row, head] = 0
                continue
            total = np.float32(0)
            own = np.float32(0)
            for start in starts:
                weight = np.float32(
                    np.exp(
                        (lse[row, head] if start < 0 else floats[start + behind + cell])
                        - peak
                    )
                )
                total += weight
                if start < 0:
                    own = weight
            for dim in range(dims):  # an empty piece may hold anything
                out[row, head, dim] = (
                    out[row, head, dim] * (own / total) if own > 0 else np.float32(0)
                )
            for start in starts:
                if start >= 0 and floats[start + behind + cell] != -np.inf:
                    share = (
                        np.float32(np.exp(floats[start + behind + cell] - peak)) / total
                    )
                    for dim in range(dims):
                        out[row, head, dim] += share * floats[start + cell * dims + dim]


_post_compiled = compiled(_post)
_merge_compiled = compiled(_merge)


class Mailboxes:
    """All mailboxes between `groups` groups, laid over one piece of memory (see `nbytes`).

    Swaps of a pair are numbered from 1.
    """

    def __init__(
        self, memory: memoryview, groups: int, heads: int, head_dim: int
    ) -> None:
        self._groups = groups
        self.block_rows = block_rows(heads, head_dim)
        self._buffer_floats = self.block_rows * heads * (head_dim + 1)
        self._box_floats = COUNTER_BYTES // 4 + 2 * self._buffer_floats
        self._floats = np.frombuffer(memory, np.float32)

    @staticmethod
    def nbytes(groups: int, heads: int, head_dim: int) -> int:
        """Memory that the mailboxes of `groups` groups need."""
        box = COUNTER_BYTES + 8 * block_rows(heads, head_dim) * heads * (head_dim + 1)
        return groups * groups * box

    def post(
        self, source: int, target: int, number: int, out: np.ndarray, lse: np.ndarray
    ) -> None:
        """Write out [rows, heads, head_dim] and lse [rows, heads] for a peer to read."""
        start = self._buffer(source, target, number)
        counter = self._counter(source, target)
        _post_compiled(out, lse, self._floats, start, counter, number)

    def wait(self, target: int, numbers: dict[int, int], spins: int) -> bool:
        """Until every source has posted its number; False: not within that many looks."""
        counters = np.array([self._counter(source, target) for source in numbers])
        return bool(wait(counters, np.array(list(numbers.values())), spins))

    def merge(
        self,
        target: int,
        sources: Sequence[int],
        numbers: dict[int, int],
        out: np.ndarray,
        lse: np.ndarray,
    ) -> None:
        """Make `out` the attention over the pieces of all `sources`, in their order; `target`
        among them stands for what is in `out` and `lse`."""
        starts = []
        for source in sources:
            mine = source == target
            starts.append(-1 if mine else self._buffer(source, target, numbers[source]))
        _merge_compiled(out, lse, self._floats, np.array(starts))

    def _counter(self, source: int, target: int) -> int:
        """Address of the counter of a pair."""
        return self._floats.ctypes.data + 4 * self._place(source, target)

    def _buffer(self, source: int, target: int, number: int) -> int:
        """Where swap `number` of a pair lies, in floats."""
        return (
            self._place(source, target)
            + COUNTER_BYTES // 4
            + (number & 1) * self._buffer_floats
        )

    def _place(self, source: int, target: int) -> int:
        return (source * self._groups + target) * self._box_floats


def block_rows(heads: int, head_dim: int) -> int:
    """Rows that one buffer holds: a multiple of 16, so that counters stay aligned."""
    return max(16, _BLOCK_BYTES // (4 * heads * (head_dim + 1)) // 16 * 16)
