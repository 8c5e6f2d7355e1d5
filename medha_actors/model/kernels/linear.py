"""Linear layers on the CPU: weights as they stand in the GGUF (4 to 8 bits), in bfloat16 or in
float32, laid out as layouts.py says.

activations   for             what a kernel reads
int8          4 to 8 bits     in blocks of 32 with a scale
int16         the same        in two bytes: 256 times as fine
float32       the same, and
              float32 weights float32
bfloat16      bfloat16        bfloat16

int8 activations are what llama.cpp uses for such weights (Q8_1): each block of 32 is rounded to
1/127 of its largest magnitude (noise of 0.5% in a product, where bfloat16 has 0.25%), and
everything after that is exact to float32. The sum for one row and column is formed in the same
order whatever rows are computed beside it, so a result does not depend on the batch or on how a
prompt is cut into chunks.
"""

# ruff: noqa: ANN001, ANN202  (compiled functions take integers, records and arrays)
from __future__ import annotations

from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

from llvmlite import ir

from medha_actors.model.kernels.blocks import BlockReader, Place
from medha_actors.model.kernels.dot import FORM, ByteDot, Form
from medha_actors.model.kernels.ir import (
    I32,
    I64,
    V16F,
    V16I,
    WIDE,
    Emit,
    kernel,
    machine_code,
)
from medha_actors.model.kernels.layouts import BLOCK, Activations, Layout

_WORDS = BLOCK // 4  # of the four inputs that an instruction multiplies
_AHEAD = 4096  # bytes


class Machine(NamedTuple):
    """What the code is made for."""

    form: Form
    wide: bool


HERE = Machine(FORM, WIDE)


def tile_rows(layout: Layout, activations: Activations, wide: bool) -> tuple[int, ...]:
    """How many rows are computed together: as many as the registers hold sums of (12 of a block and
    12 totals)."""
    if wide:
        return (12, 4, 2, 1)
    if activations == "int16":
        return (1,)
    return (2, 1) if activations == "int8" and layout.bits > 4 else (4, 1)


class _Tile:
    """`rows` rows by one column; addresses and row lengths in bytes as in linear_address()."""

    def __init__(
        self,
        e: Emit,
        layout: Layout,
        form: Form,
        rows: int,
        blocks: ir.Value,
        w: ir.Value,
        x: ir.Value,
        x_row: ir.Value,
        s: ir.Value,
        s_row: ir.Value,
        out: ir.Value,
        out_row: ir.Value,
        add: ir.Value,
    ) -> None:
        self.e = e
        self.layout = layout
        self.weights = BlockReader(e, layout)
        self.form = form
        self.rows = range(rows)
        self.blocks = blocks
        self.w = w
        self.add = add
        self.x, self.s, self.out = (
            [e.at(start, e.times(step, r)) for r in self.rows]
            for start, step in ((x, x_row), (s, s_row), (out, out_row))
        )

    def emit(self, activations: Activations) -> None:
        """out = x w, added to what stands in `out` (a residual) when `add` is not 0."""
        e = self.e
        self.total = [e.variable(e.constant(0.0)) for _ in self.rows]
        with e.b.if_then(e.b.icmp_signed("!=", self.add, I64(0))):
            for total, place in zip(self.total, self.out, strict=True):
                e.b.store(e.load(place), total)
        if self.layout.plain:
            self.plain(activations == "bfloat16")
        elif activations == "float32":
            self.with_float()
        else:
            self.with_integers(1 if activations == "int8" else 2)
        for total, place in zip(self.total, self.out, strict=True):
            e.store(e.b.load(total), place)

    def with_integers(self, parts: int) -> None:
        """s: [rows][4][blocks], the scale of each block and the sums of its rounded values, of
        their first half and of their second half.

        A row of x is int8 [inputs]; with two parts the high bytes [inputs] and the low ones
        [inputs], signed both.
        """
        e = self.e
        b = self.e.b
        dot = ByteDot(e, 4 if self.layout.bits == 4 else 8, self.form)
        with e.loop(self.blocks) as loop:
            block = self.block(loop.index)
            scales = self.weights.scales(block)
            words = _WORDS // len(scales)
            for half, (d, m) in enumerate(scales):
                acc = [[dot.zero() for _ in range(parts)] for _ in self.rows]
                for j in range(words * half, words * half + words):
                    weight = dot.prepare(self.weights.word(block, j))
                    for r in self.rows:
                        place = e.at(self.x[r], e.times(loop.index, BLOCK), 4 * j)
                        for part in range(parts):
                            acc[r][part] = dot.add(
                                acc[r][part], weight, e.broadcast(place, I32)
                            )
                            place = e.at(place, e.times(self.blocks, BLOCK))
                sums = 1 if len(scales) == 1 else 2 + half
                for r in self.rows:
                    place = e.at(self.s[r], e.times(loop.index, 4))
                    value = e.fma(
                        m,
                        e.broadcast(e.at(place, e.times(self.blocks, 4 * sums))),
                        b.load(self.total[r]),
                    )
                    scale = b.fmul(d, e.broadcast(place))
                    whole = dot.total(acc[r][0])
                    if parts == 2:
                        whole = b.add(
                            b.shl(whole, e.constant(8, V16I)), dot.total(acc[r][1])
                        )
                    b.store(e.fma(b.sitofp(whole, V16F), scale, value), self.total[r])

    def with_float(self) -> None:
        """s: [rows][4][blocks], the sum of each block (not used where there is a zero)."""
        e = self.e
        b = self.e.b
        unit = e.constant(2.0**-24)  # see BlockReader.number
        with e.loop(self.blocks) as loop:
            block = self.block(loop.index)
            scales = self.weights.scales(block)
            inputs = BLOCK // len(scales)
            for half, (d, m) in enumerate(scales):
                acc = [e.constant(0.0) for _ in self.rows]
                for i in range(inputs * half, inputs * half + inputs):
                    weight = self.weights.number(block, i)
                    for r in self.rows:
                        value = e.broadcast(
                            e.at(self.x[r], e.times(loop.index, 4 * BLOCK), 4 * i)
                        )
                        acc[r] = e.fma(weight, value, acc[r])
                if self.layout.bits == 8:
                    d = b.fmul(d, unit)
                for r in self.rows:
                    value = b.load(self.total[r])
                    if self.layout.zero is None:
                        place = e.at(self.s[r], e.times(loop.index, 4))
                        value = e.fma(m, e.broadcast(place), value)
                    b.store(e.fma(acc[r], d, value), self.total[r])

    def block(self, number: ir.Value) -> Place:
        """Where a block is. The same block of the next column is prefetched; for one row, which
        is done with a column before that came, what lies _AHEAD."""
        place = self.weights.place(self.w, number)
        size = self.weights.layout.group_bytes
        ahead = I64(-(-_AHEAD // size) * size)
        if len(self.rows) > 1:
            ahead = self.weights.column_bytes(self.blocks)
        self.weights.prefetch(place, ahead)
        return place

    def plain(self, bfloat: bool) -> None:
        """bfloat16 (pairs of inputs in a lane) or float32 weights and activations."""
        e = self.e
        b = self.e.b
        with e.loop(e.times(self.blocks, BLOCK // (2 if bfloat else 1) // 8)) as loop:
            words = e.at(self.w, e.times(loop.index, 512))
            if len(self.rows) > 1:
                e.prefetch(
                    e.at(words, e.times(self.blocks, self.layout.group_bytes)), 512
                )
            for i in range(8):
                weight = e.load(e.at(words, 64 * i), V16I if bfloat else V16F, 64)
                for r in self.rows:
                    place = e.at(self.x[r], e.times(loop.index, 32), 4 * i)
                    value = b.load(self.total[r])
                    if bfloat:
                        b.store(
                            e.dot_bf16(value, weight, e.broadcast(place, I32)),
                            self.total[r],
                        )
                    else:
                        b.store(e.fma(weight, e.broadcast(place), value), self.total[r])


def _linear(layout: Layout, activations: Activations, machine: Machine) -> Any:
    def emit(
        e: Emit,
        rows: ir.Value,
        columns: ir.Value,
        blocks: ir.Value,
        w: ir.Value,
        x: ir.Value,
        x_row: ir.Value,
        s: ir.Value,
        s_row: ir.Value,
        out: ir.Value,
        out_row: ir.Value,
        add: ir.Value,
    ) -> None:
        b = e.b
        column_bytes = BlockReader(e, layout).column_bytes(blocks)
        with e.loop(columns) as column:
            panel = e.at(w, e.times(column.index, column_bytes))
            first = I64(0)
            for size in tile_rows(layout, activations, machine.wide):
                tiles = b.udiv(b.sub(rows, first), I64(size))
                with e.loop(tiles) as tile:
                    row = e.at(first, e.times(tile.index, size))
                    place = e.at(out, e.times(out_row, row), e.times(column.index, 64))
                    xr = e.at(x, e.times(x_row, row))
                    sr = e.at(s, e.times(s_row, row))
                    _Tile(
                        e,
                        layout,
                        machine.form,
                        size,
                        blocks,
                        panel,
                        xr,
                        x_row,
                        sr,
                        s_row,
                        place,
                        out_row,
                        add,
                    ).emit(activations)
                first = e.at(first, e.times(tiles, size))

    return kernel(11, emit)


def _code(rows, columns, blocks, w, x, x_row, s, s_row, out, out_row, add):
    _kernel(rows, columns, blocks, w, x, x_row, s, s_row, out, out_row, add)  # noqa: F821


@cache
def linear_address(
    layout: Layout,
    activations: Activations,
    machine: Machine = HERE,
) -> int:
    """Machine code of the linear layer for one layout and form of activations, compiled on first
    use.

    Its arguments: rows, columns (outputs / 16), blocks (inputs / 32), addresses of weights and
    activations, bytes of an activation row, address and row bytes of what goes with the activations
    (see _Tile), address and row bytes of the float32 output, and whether to add to what stands
    there.
    """
    scope = {**globals(), "_kernel": _linear(layout, activations, machine)}
    function = FunctionType(_code.__code__, scope)
    # numba's cache on disk tells functions apart by their names
    function.__qualname__ = "_".join(
        map(str, ("linear", layout.name, activations, *machine))
    )
    return machine_code(function, 11)
