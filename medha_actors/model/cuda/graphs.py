"""Graphs: steps of single rows, recorded once for some numbers of rows and then replayed in one
launch.

A step is filled up to the next such number with rows that are stored nowhere and work that is none.
What fits no graph is launched kernel by kernel.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from medha_actors.model.cuda.layers import PagedAttention
from medha_actors.model.cuda.step import (
    DeviceStep,
    Extent,
    Ints,
    StepArrays,
    StepBuffer,
)

_log = logging.getLogger("medha.model")

ROWS: Final = (1, 2, 4, 8, 16, 24, 32, *range(48, 257, 16))
_SECONDS: Final = 30.0  # that capturing may take at start
_TABLES: Final = 1 << 18  # page numbers of a step that there is room for

Run = Callable[[DeviceStep, Tensor | None], Tensor]


class Capture(Protocol):
    """How launches are recorded."""

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Call `run` and record what it launches. Returns what launches it again, and where the
        result lies each time."""
        ...

    def drop(self) -> None:
        """Nothing that was recorded is launched any more."""
        ...


class CudaCapture:
    """CUDA graphs that share one pool of memory: they are replayed one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        run()  # what is compiled and allocated at first use is no part of a graph
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        mode = "thread_local"  # other threads may go on
        with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode=mode):
            result = run()
        return graph.replay, result

    def drop(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()  # the old one ends with its graphs


class _Recorded(NamedTuple):
    extent: Extent
    replay: Callable[[], None]
    result: Tensor  # [rows, hidden], written by every replay


class StepGraphs:
    """The steps of one stage that are recorded."""

    def __init__(
        self,
        device: torch.device,
        capture: Capture,
        run: Run,
        attention: PagedAttention,
        hidden: tuple[int, torch.dtype] | None,
        rows: Sequence[int],
    ) -> None:
        """`hidden`: width and type of the states that come in, None in the first stage."""
        self._capture = capture
        self._run = run
        self._attention = attention
        self.extents = [
            Extent(count, count, *attention.most_work(count)) for count in rows
        ]
        ints = _TABLES + max([sum(extent) for extent in self.extents]) * 8
        self._buffer = StepBuffer(device, ints)
        self._hidden = None
        if hidden is not None:
            width, dtype = hidden
            self._hidden = torch.zeros(max(rows), width, dtype=dtype, device=device)
        self._recorded: list[_Recorded] = []

    def prepare(self, seconds: float = _SECONDS) -> None:
        """Record, the fewest rows first; once they have taken `seconds`, the rest is left out."""
        start = time.perf_counter()
        for extent in self.extents[len(self._recorded) :]:
            if time.perf_counter() - start > seconds:
                _log.warning(
                    "graphs from %d rows on are left out: too slow", extent.rows
                )
                break
            try:
                self._record(extent)
            except RuntimeError as error:  # without them all is computed too
                _log.warning(
                    "graphs from %d rows on are left out: %s", extent.rows, error
                )
                break
        took = time.perf_counter() - start
        _log.info(
            "%d graphs of decode steps captured in %.1f s", len(self._recorded), took
        )

    def run(self, arrays: StepArrays, hidden: Tensor | None) -> Tensor | None:
        """Replay the smallest graph that the step fits in; None: there is none."""
        if arrays.attention.wide:
            return None
        wanted = arrays.extent
        for recorded in self._recorded:
            if recorded.extent.holds(wanted):
                return self._replay(recorded, arrays, hidden)
        return None

    def drop(self) -> None:
        """Forget what is recorded: the memory that it reads and writes goes away."""
        self._recorded.clear()
        self._capture.drop()

    def eager(
        self, arrays: StepArrays, hidden: Tensor | None, extent: Extent
    ) -> Tensor:
        """What the graph of this extent does, launched kernel by kernel."""
        assert self._bring(arrays, hidden, extent), (
            "more page numbers than there is room for"
        )
        return self._launch(extent)

    def _record(self, extent: Extent) -> None:
        self._buffer.send(_nothing(self._attention), extent)
        self._recorded.append(
            _Recorded(extent, *self._capture(lambda: self._launch(extent)))
        )

    def _launch(self, extent: Extent) -> Tensor:
        hidden = None if self._hidden is None else self._hidden[: extent.rows]
        return self._run(self._buffer.step(extent), hidden)

    def _bring(self, arrays: StepArrays, hidden: Tensor | None, extent: Extent) -> bool:
        """To the places that what is recorded reads; whether there is room."""
        if not self._buffer.send(arrays, extent):
            return False
        if self._hidden is not None:
            assert hidden is not None, "later stages are given hidden states"
            self._hidden[: len(hidden)].copy_(hidden)
        return True

    def _replay(
        self, recorded: _Recorded, arrays: StepArrays, hidden: Tensor | None
    ) -> Tensor | None:
        if not self._bring(arrays, hidden, recorded.extent):
            return None
        recorded.replay()
        rows = len(arrays.positions)
        return recorded.result[:rows].clone()  # the next replay writes there again


def _nothing(attention: PagedAttention) -> StepArrays:
    """A step without rows."""
    none: Ints = np.empty(0, np.int32)
    sequences = none.reshape(0, 4)
    return StepArrays(none, none, None, sequences, (), attention.plan_work(sequences))
