"""Linear layers on the CPU: weights as they stand in the GGUF (4 or 8 bits), in bfloat16 or in
float32.

Weights are repacked so that the 16 lanes of a vector are 16 output features: a "column" of 16
outputs holds, for each block of 32 inputs, everything the kernel needs in a row, and a matrix is
streamed from memory once per 12 rows at most.

kind      weights           activations            bytes of a block (16 outputs, 32 inputs)
Q4_INT8   Q4_1  w = d q + m int8 in blocks of 32   320: 256 of halves, 16 d, 16 m (float16)
                            with a scale
Q8_INT8   Q8_0  w = d q     the same               544: 512 of q + 128, 16 d (float16)
Q4_INT16, Q8_INT16          int16 in two bytes:    as above
                            256 times as fine
Q4_FLOAT  Q4_1              float32                as above
Q8_FLOAT  Q8_0              float32                as above
BFLOAT    bfloat16          bfloat16               1,024: pairs of inputs side by side
FLOAT     float32           float32                2,048

int8 activations are what llama.cpp uses for such weights (Q8_1): each block of 32 is rounded to
1/127 of its largest magnitude (noise of 0.5% in a product, where bfloat16 has 0.25%), and
everything after that is exact to float32. The sum for one row and column is formed in the same
order whatever rows are computed beside it, so a result does not depend on the batch or on how a
prompt is cut into chunks.
"""

# ruff: noqa: ANN001, ANN202  (compiled functions take integers, records and arrays)
from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir

from medha_actors.model.kernels.dot import ByteDot
from medha_actors.model.kernels.ir import (
    I32,
    I64,
    V16F,
    V16H,
    V16I,
    V64C,
    WIDE,
    Emit,
    kernel,
    machine_code,
)

Q4_INT8, Q8_INT8, Q4_INT16, Q8_INT16, Q4_FLOAT, Q8_FLOAT, BFLOAT, FLOAT = range(8)
BLOCK = 32  # inputs
BLOCK_BYTES = (320, 544, 320, 544, 320, 544, 1024, 2048)
_NARROW = {Q4_INT8: (4, 1), Q4_INT16: (1,), Q8_INT8: (2, 1), Q8_INT16: (1,)}
_D_OFFSET = {4: 256, 8: 512}


def tile_rows(kind: int) -> tuple[int, ...]:
    """How many rows are computed together: as many as the registers hold sums of (12 of a block and
    12 totals)."""
    return (12, 4, 2, 1) if WIDE else _NARROW.get(kind, (4, 1))


class _Tile:
    """`rows` rows by one column; addresses and row lengths in bytes as in linear_address()."""

    def __init__(
        self,
        e: Emit,
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
        self.rows = range(rows)
        self.blocks = blocks
        self.w = w
        self.add = add
        self.x, self.s, self.out = (
            [e.at(start, e.times(step, r)) for r in self.rows]
            for start, step in ((x, x_row), (s, s_row), (out, out_row))
        )

    def emit(self, kind: int) -> None:
        """out = x w, added to what stands in `out` (a residual) when `add` is not 0."""
        e = self.e
        self.total = [e.variable(e.constant(0.0)) for _ in self.rows]
        with e.b.if_then(e.b.icmp_signed("!=", self.add, I64(0))):
            for total, place in zip(self.total, self.out, strict=True):
                e.b.store(e.load(place), total)
        if kind <= Q8_INT16:
            self.with_integers(8 if kind in (Q8_INT8, Q8_INT16) else 4, kind >= Q4_INT16)
        elif kind in (Q4_FLOAT, Q8_FLOAT):
            self.with_float(4 if kind == Q4_FLOAT else 8)
        else:
            self.plain(kind == BFLOAT)
        for total, place in zip(self.total, self.out, strict=True):
            e.store(e.b.load(total), place)

    def with_integers(self, bits: int, two_bytes: bool) -> None:
        """s: [rows][2][blocks], the scale of each block and the sum of its rounded values.

        A row of x is int8 [inputs]; with two bytes the high ones [inputs] and the low ones
        [inputs], signed both.
        """
        e = self.e
        b = self.e.b
        low = e.constant(0x0F0F0F0F, V16I)
        four = e.constant(4, V16I)
        dot = ByteDot(e, bits)
        with e.loop(self.blocks) as loop:
            block = self.block(loop.index, Q4_INT8 if bits == 4 else Q8_INT8)
            acc = [[dot.zero() for _ in range(1 + two_bytes)] for _ in self.rows]
            for j in range(8):
                if bits == 8:
                    raw = e.load(e.at(block, 64 * j), V16I, 32)
                else:
                    raw = e.load(e.at(block, 64 * (j // 2)), V16I, 64)
                    raw = b.and_(b.lshr(raw, four) if j % 2 else raw, low)
                weight = dot.prepare(raw)
                for r in self.rows:
                    place = e.at(self.x[r], e.times(loop.index, BLOCK), 4 * j)
                    for part in range(1 + two_bytes):
                        acc[r][part] = dot.add(acc[r][part], weight, e.broadcast(place, I32))
                        place = e.at(place, e.times(self.blocks, BLOCK))
            d, m = self.scales(block, bits)
            for r in self.rows:
                place = e.at(self.s[r], e.times(loop.index, 4))
                value = e.fma(
                    m, e.broadcast(e.at(place, e.times(self.blocks, 4))), b.load(self.total[r])
                )
                scale = b.fmul(d, e.broadcast(place))
                whole = dot.total(acc[r][0])
                if two_bytes:
                    whole = b.add(b.shl(whole, e.constant(8, V16I)), dot.total(acc[r][1]))
                b.store(e.fma(b.sitofp(whole, V16F), scale, value), self.total[r])

    def with_float(self, bits: int) -> None:
        """s: [rows][blocks], the sum of each block (not used with 8 bits)."""
        e = self.e
        b = self.e.b
        with e.loop(self.blocks) as loop:
            block = self.block(loop.index, Q4_FLOAT if bits == 4 else Q8_FLOAT)
            acc = [e.constant(0.0) for _ in self.rows]
            for i in range(BLOCK):
                weight = self.nibble(block, i) if bits == 4 else self.byte(block, i)
                for r in self.rows:
                    value = e.broadcast(e.at(self.x[r], e.times(loop.index, 4 * BLOCK), 4 * i))
                    acc[r] = e.fma(weight, value, acc[r])
            d, m = self.scales(block, bits)
            for r in self.rows:
                value = b.load(self.total[r])
                if bits == 4:
                    value = e.fma(m, e.broadcast(e.at(self.s[r], e.times(loop.index, 4))), value)
                b.store(
                    e.fma(acc[r], d if bits == 4 else b.fmul(d, e.constant(2.0**-24)), value),
                    self.total[r],
                )

    def nibble(self, block: ir.Value, i: int) -> ir.Value:
        """q of input i, as float32."""
        b = self.e.b
        raw = self.e.load(self.e.at(block, 64 * (i // 8)), V16I, 32)
        shifted = b.lshr(raw, self.e.constant(8 * (i % 4) + 4 * (i // 4 % 2), V16I))
        return b.sitofp(b.and_(shifted, self.e.constant(15, V16I)), V16F)

    def byte(self, block: ir.Value, i: int) -> ir.Value:
        """2**24 q of input i: the byte is moved to the top of its word, which takes one
        instruction."""
        b = self.e.b
        raw = self.e.load(self.e.at(block, 64 * (i // 4)), V16I, 32)
        signed = b.bitcast(b.xor(raw, self.e.constant(0x80808080, V16I)), V64C)
        order = [4 * (place // 4) + i % 4 if place % 4 == 3 else 64 for place in range(64)]
        moved = b.shuffle_vector(
            signed, ir.Constant(V64C, [0] * 64), ir.Constant(ir.VectorType(I32, 64), order)
        )
        return b.sitofp(b.bitcast(moved, V16I), V16F)

    def block(self, number: ir.Value, kind: int) -> ir.Value:
        """The address of a block; the same block of the next column is prefetched."""
        size = BLOCK_BYTES[kind]
        here = self.e.at(self.w, self.e.times(number, size))
        if (
            len(self.rows) > 1
        ):  # one row at a time is read so fast that the machine's own prefetching does better
            self.e.prefetch(self.e.at(here, self.e.times(self.blocks, size)), size)
        return here

    def scales(self, block: ir.Value, bits: int) -> tuple[ir.Value, ir.Value]:
        """d and m of w = d q + m, where q is unsigned."""
        e = self.e
        d = e.b.fpext(e.load(e.at(block, _D_OFFSET[bits]), V16H, 32), V16F)
        if bits == 4:
            return d, e.b.fpext(e.load(e.at(block, 288), V16H, 32), V16F)
        return d, e.b.fmul(d, e.constant(-128.0))

    def plain(self, bfloat: bool) -> None:
        """bfloat16 (pairs of inputs in a lane) or float32 weights and activations."""
        e = self.e
        b = self.e.b
        with e.loop(e.times(self.blocks, BLOCK // (2 if bfloat else 1) // 8)) as loop:
            words = e.at(self.w, e.times(loop.index, 512))
            if len(self.rows) > 1:
                e.prefetch(
                    e.at(words, e.times(self.blocks, BLOCK_BYTES[BFLOAT if bfloat else FLOAT])), 512
                )
            for i in range(8):
                weight = e.load(e.at(words, 64 * i), V16I if bfloat else V16F, 64)
                for r in self.rows:
                    place = e.at(self.x[r], e.times(loop.index, 32), 4 * i)
                    value = b.load(self.total[r])
                    if bfloat:
                        b.store(e.dot_bf16(value, weight, e.broadcast(place, I32)), self.total[r])
                    else:
                        b.store(e.fma(weight, e.broadcast(place), value), self.total[r])


def _linear(kind: int) -> Any:
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
        with e.loop(columns) as column:
            panel = e.at(w, e.times(e.times(column.index, blocks), BLOCK_BYTES[kind]))
            first = I64(0)
            for size in tile_rows(kind):
                tiles = b.udiv(b.sub(rows, first), I64(size))
                with e.loop(tiles) as tile:
                    row = e.at(first, e.times(tile.index, size))
                    place = e.at(out, e.times(out_row, row), e.times(column.index, 64))
                    xr = e.at(x, e.times(x_row, row))
                    sr = e.at(s, e.times(s_row, row))
                    _Tile(e, size, blocks, panel, xr, x_row, sr, s_row, place, out_row, add).emit(
                        kind
                    )
                first = e.at(first, e.times(tiles, size))

    return kernel(11, emit)


_kernel_q4_int8, _kernel_q8_int8, _kernel_q4_int16, _kernel_q8_int16 = map(_linear, range(4))
_kernel_q4_float, _kernel_q8_float, _kernel_bfloat, _kernel_float = map(_linear, range(4, 8))


# numba's cache wants a function in a file for each
def _q4_int8(rows, columns, blocks, w, x, x_row, s, s_row, out, out_row, add):
    _kernel_q4_int8(rows, columns, blocks, w, x, x_row, s, s_row, out, out_row, add)


def _q8_int8(rows, columns, blocks, w, x, x_row, s, s_row, out, out_row, add):
    _kernel_q8_int8(rows, columns, blocks, w, x, x_row, s, s_row, out, out_row, add)


def _q4_int16(rows, columns, blocks, w, x, x_row, s, s_row, out, out_row, add):
    _kernel_q4_int16(rows, columns, blocks, w, x, x_row, s, s_row, out, out_row, add)


def _q8_int16(rows, columns, blocks, w, x, x_row, s, s_row, out, out_row, add):
    _kernel_q8_int16(rows, columns, blocks, w, x, x_row, s, s_row, out, out_row, add)


def _q4_float(rows, columns, blocks, w, x, x_row, s, s_row, out, out_row, add):
    _kernel_q4_float(rows, columns, blocks, w, x, x_row, s, s_row, out, out_row, add)


def _q8_float(rows, columns, blocks, w, x, x_row, s, s_row, out, out_row, add):
    _kernel_q8_float(rows, columns, blocks, w, x, x_row, s, s_row, out, out_row, add)


def _bfloat(rows, columns, blocks, w, x, x_row, s, s_row, out, out_row, add):
    _kernel_bfloat(rows, columns, blocks, w, x, x_row, s, s_row, out, out_row, add)


def _float(rows, columns, blocks, w, x, x_row, s, s_row, out, out_row, add):
    _kernel_float(rows, columns, blocks, w, x, x_row, s, s_row, out, out_row, add)


@cache
def linear_address(kind: int) -> int:
    """Machine code of the linear layer of one kind, compiled on first use.

    Its arguments: rows, columns (outputs / 16), blocks (inputs / 32), addresses of weights and
    activations, bytes of an activation row, address and row bytes of what goes with the activations
    (see _Tile), address and row bytes of the float32 output, and whether to add to what stands
    there.
    """
    codes = (_q4_int8, _q8_int8, _q4_int16, _q8_int16, _q4_float, _q8_float, _bfloat, _float)
    return machine_code(codes[kind], 11)
