"""What a step is, on the device: all of its numbers in one buffer, brought there by one copy that
nobody waits for.

On the device there is one buffer: the copy of the next step waits in the stream for the kernels of
this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medha_actors.model.cuda.staging import Staging
from medha_actors.model.step_plan import StepPlan

Ints = NDArray[np.int32]

_ALIGNED: Final = 4  # ints: kernels are compiled for addresses of whole 16 bytes
_NOWHERE: Final = -1  # a slot
_SEQUENCE: Final = 4  # numbers of a sequence, an item of work, a merge
_WORK: Final = 5
_MERGE: Final = 4


class Work(Protocol):
    """What attention is to do in a step; what the numbers mean is its own business."""

    @property
    def work(self) -> Ints:
        """[m, 5]"""

    @property
    def merges(self) -> Ints:
        """[k, 4]"""

    @property
    def wide(self) -> int:
        """Items of many rows; no graph has any."""

    @property
    def slots(self) -> int:
        """Of partial results."""


class Extent(NamedTuple):
    """How much room a step takes; tables lie last and take what is left."""

    rows: int
    sequences: int
    work: int
    merges: int
    slots: int

    def holds(self, other: Extent) -> bool:
        """Whether a step of the other extent fits."""
        return (
            self.rows >= other.rows
            and self.sequences >= other.sequences
            and self.work >= other.work
            and self.merges >= other.merges
            and self.slots >= other.slots
        )


class StepArrays(NamedTuple):
    """The numbers of a step on the host; see DeviceStep."""

    positions: Ints
    slots: Ints
    token_ids: Ints | None
    sequences: Ints
    tables: tuple[Ints, ...]  # of each sequence
    attention: Work

    @property
    def extent(self) -> Extent:
        work = self.attention.work
        counts = (len(self.sequences), len(work), len(self.attention.merges))
        return Extent(len(self.positions), *counts, self.attention.slots)

    @property
    def table_starts(self) -> Ints:
        """Where each sequence's table begins among all tables."""
        lengths = [len(table) for table in self.tables]
        starts = np.zeros(len(lengths), np.int32)
        np.cumsum(lengths[:-1], out=starts[1:])
        return starts


def arrays_of(
    plan: StepPlan, token_ids: Ints | None, plan_work: Callable[[Ints], Work]
) -> StepArrays:
    """The numbers of a plan; `token_ids` in the first stage."""
    numbers = [(span.first, span.rows, span.cached, span.writes) for span in plan.spans]
    sequences = np.array(numbers, np.int32).reshape(-1, _SEQUENCE)
    tables = tuple([span.pages for span in plan.spans])
    positions = plan.positions.astype(np.int32)
    slots = plan.slots.astype(np.int32)
    return StepArrays(
        positions, slots, token_ids, sequences, tables, plan_work(sequences)
    )


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """int32 tensors, views of one buffer. Every array begins at 16 bytes."""

    rows: int
    slots_of_partials: int
    wide: int  # items of work of many rows
    positions: Tensor  # [rows]
    slots: Tensor  # [rows]: page * page_tokens + place; -1: not stored here
    token_ids: Tensor  # [rows]
    # [n, 4]: first row, rows, cached, writes. The rows see `cached` tokens of the sequence's piece,
    # and if it writes their own keys causally, which lie behind the cached ones.
    sequences: Tensor
    table_starts: Tensor  # [n]: of each sequence in `tables`
    tables: Tensor  # page numbers
    work: Tensor  # [m, 5]; see Work
    merges: Tensor  # [k, 4]


class _Layout(NamedTuple):
    """Where each array begins, in ints."""

    positions: int
    slots: int
    token_ids: int
    sequences: int
    table_starts: int
    work: int
    merges: int
    tables: int


def _layout(extent: Extent) -> _Layout:
    rows, sequences, work, merges, _ = extent
    sizes = (
        rows,
        rows,
        rows,
        sequences * _SEQUENCE,
        sequences,
        work * _WORK,
        merges * _MERGE,
    )
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + -(-size // _ALIGNED) * _ALIGNED)
    return _Layout(*starts)


class StepBuffer:
    """Brings steps to the device, one after the other on one stream."""

    def __init__(self, device: torch.device, ints: int) -> None:
        self.device = device
        self._staging = Staging(device, ints, torch.int32)

    def write(self, arrays: StepArrays) -> DeviceStep:
        """Begin to bring a step over, whatever its size. What the last step's kernels read stays
        until they are done."""
        extent = arrays.extent
        if not self.send(arrays, extent):
            size = _size(arrays, _layout(extent))
            self._staging = Staging(
                self.device, 1 << (size - 1).bit_length(), torch.int32
            )
            self.send(arrays, extent)
        return self.step(extent, arrays.attention.wide)

    def send(self, arrays: StepArrays, extent: Extent) -> bool:
        """The same, laid out and filled up for an extent, at addresses that do not change; whether
        there is room."""
        layout = _layout(extent)
        size = _size(arrays, layout)
        if size > self._staging.size:
            return False
        slab = self._staging.slab()
        _fill(slab.array, arrays, extent, layout)
        slab.send(self._staging.there[:size])
        return True

    def step(self, extent: Extent, wide: int = 0) -> DeviceStep:
        """The views that every step of this extent is given."""
        layout = _layout(extent)
        there = self._staging.there

        def matrix(start: int, count: int, width: int) -> Tensor:
            return there[start : start + count * width].view(count, width)

        return DeviceStep(
            rows=extent.rows,
            slots_of_partials=extent.slots,
            wide=wide,
            positions=there[: extent.rows],
            slots=there[layout.slots : layout.slots + extent.rows],
            token_ids=there[layout.token_ids : layout.token_ids + extent.rows],
            sequences=matrix(layout.sequences, extent.sequences, _SEQUENCE),
            table_starts=there[
                layout.table_starts : layout.table_starts + extent.sequences
            ],
            tables=there[layout.tables :],
            work=matrix(layout.work, extent.work, _WORK),
            merges=matrix(layout.merges, extent.merges, _MERGE),
        )


def _size(arrays: StepArrays, layout: _Layout) -> int:
    return layout.tables + sum([len(table) for table in arrays.tables])


def _fill(into: Ints, arrays: StepArrays, extent: Extent, layout: _Layout) -> None:
    """Store the arrays; what is left of an extent is rows that go nowhere. Work says itself how
    much of it there is."""
    rows = extent.rows
    _put(into, layout.positions, rows, arrays.positions, 0)
    _put(into, layout.slots, rows, arrays.slots, _NOWHERE)
    if arrays.token_ids is not None:
        _put(into, layout.token_ids, rows, arrays.token_ids, 0)
    _put(into, layout.sequences, extent.sequences * _SEQUENCE, arrays.sequences, 0)
    _put(into, layout.table_starts, extent.sequences, arrays.table_starts, 0)
    _put(into, layout.work, 0, arrays.attention.work, 0)
    _put(into, layout.merges, 0, arrays.attention.merges, 0)
    if arrays.tables:
        np.concatenate(arrays.tables, out=into[layout.tables : _size(arrays, layout)])


def _put(into: Ints, start: int, room: int, values: Ints, padding: int) -> None:
    stop = start + values.size
    into[start:stop] = values.reshape(-1)
    into[stop : start + room] = padding
