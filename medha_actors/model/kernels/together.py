"""Calls of the kernels that several threads share (threaded_layers.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medha_actors.model.kernels.counters import SPINS
from medha_actors.model.kernels.layers import COUNT
from medha_actors.model.kernels.pack import aligned
from medha_actors.model.kernels.products import ROWS
from medha_actors.model.kernels.threaded_layers import (
    FEW_PHASES,
    MANY_PHASES,
    few_rows,
    head_by_columns,
    many_rows,
)
from medha_actors.model.kernels.threads import Threads, phases_of

FEW_ROWS = 8  # for each thread: up to so many, threads share columns, not rows
PIECES = 2  # of a matrix, for each thread
# of attention, for each thread: that one has one more does not matter
ENOUGH_PIECES = 4
HEAD_PIECES = 8  # of the head
# of a span, that attend together: the fewer, the more often keys are read
PART_ROWS = (64, 32, 16)


class Together:
    """The layers and the head of a stage, by several threads."""

    def __init__(
        self,
        threads: Threads,
        models: NDArray[np.void],
        scratch: Sequence[tuple[np.ndarray, ...]],
        widest: int,
    ) -> None:
        """`models`, `scratch`: one for each thread; `widest`: outputs of a row."""
        self._threads = threads
        self._models = models
        self._scratch = scratch
        model = models[0]
        rows = ROWS if threads.count > 1 else 0
        self._wide = aligned(rows * widest, np.float32)
        self._gated = aligned(rows * int(model["intermediate"]), np.float32)
        self._dense = not model["experts"]

    def layers(
        self,
        made: tuple[Any, ...],
        step: NDArray[np.void],
        slots: NDArray[np.int64],
        attention: tuple[Any, ...],
        threads: int,
    ) -> None:
        """All layers; the arguments of layers.layers(), of which each thread has its own model and
        scratch."""
        _, *tables, experts = made
        spans, pages, _, *results = attention
        rows = int(step[0]["rows"])
        count = len(tables[0])
        few = self._dense and rows <= min(ROWS, FEW_ROWS * threads)
        part_rows = ROWS if few else self._part_rows(spans, threads)

        def attended(number: int) -> tuple[Any, ...]:
            scratch = self._scratch[number]
            return step, slots, spans, pages, scratch, *results, part_rows

        def by_columns(number: int) -> tuple[Any, ...]:
            shared = (self._wide.ctypes.data, self._gated.ctypes.data)
            return *tables, *attended(number), *shared, PIECES * threads

        def by_rows(number: int) -> tuple[Any, ...]:
            return *tables, experts, *attended(number), _block(rows, threads)

        if few:
            self._run(few_rows, by_columns, FEW_PHASES * count, threads)
        else:
            self._run(many_rows, by_rows, MANY_PHASES * (count + 1), threads)

    def _part_rows(self, spans: NDArray[np.int64], threads: int) -> int:
        """How many rows attend together, so that no thread has much more to do than another."""
        heads = int(self._models[0]["kv_heads"])
        rows = spans[:, COUNT]
        for most in PART_ROWS:
            pieces = heads * int((-(-rows // most)).sum())
            if pieces % threads == 0 or pieces >= ENOUGH_PIECES * threads:
                return most
        return PART_ROWS[-1]

    def head(self, made: tuple[Any, ...], threads: int) -> None:
        """The arguments of layers.head(), but for the model."""
        arguments = (*made, HEAD_PIECES * threads)
        phases = -(-made[2] // ROWS)
        self._run(head_by_columns, lambda number: arguments, phases, threads)

    def _run(
        self,
        kernel: Callable[..., bool],
        arguments: Callable[[int], tuple[Any, ...]],
        phases: int,
        threads: int,
    ) -> None:
        """Let each thread call the kernel with its model, its arguments, and what they share."""
        counters = phases_of(phases)
        calls = [
            (self._models[number : number + 1], *arguments(number), counters, SPINS)
            for number in range(threads)
        ]
        self._threads.run(lambda number: kernel(*calls[number]), threads)


def _block(rows: int, threads: int) -> int:
    """Rows that a thread takes at a time: equal pieces, as many for each."""
    rounds = -(-rows // (ROWS * threads))
    return -(-rows // (rounds * threads))
