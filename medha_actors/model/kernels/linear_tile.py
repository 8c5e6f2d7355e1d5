"""Some rows by one column of a linear layer: what linear.py's kernels are made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from llvmlite import ir

from medha_actors.model.kernels.blocks import BlockReader, Place
from medha_actors.model.kernels.dot import ByteDot, Form
from medha_actors.model.kernels.ir import I32, I64, V16F, V16I, Emit
from medha_actors.model.kernels.layouts import (
    BLOCK,
    SCALES_BYTES,
    Activations,
    Layout,
)

PARTS = {"int8": 1, "int16": 2}  # bytes of an activation
_WORDS = BLOCK // 4  # of the four inputs that an instruction multiplies
_AHEAD = 8192  # bytes


class Tile:
    """`rows` of the `step_rows` rows by one column; addresses and row lengths in bytes as in
    linear_address()."""

    def __init__(
        self,
        e: Emit,
        layout: Layout,
        form: Form,
        rows: int,
        step_rows: ir.Value,
        blocks: ir.Value,
        w: ir.Value,
        x: ir.Value,
        x_row: ir.Value,
        s: ir.Value,
        out: ir.Value,
        out_row: ir.Value,
        add: ir.Value,
        held: ir.Value | None = None,
    ) -> None:
        """`held`: rows that are there, the others are computed for nobody; None: all are."""
        self.e = e
        self.held = held
        self.layout = layout
        self.weights = BlockReader(e, layout)
        self.form = form
        self.rows = range(rows)
        self.step_rows = step_rows
        self.blocks = blocks
        self.w = w
        self.add = add
        self.x = x
        self.x_row = x_row
        self.s = s
        self.out = [e.at(out, e.times(out_row, r)) for r in self.rows]

    def emit(self, activations: Activations) -> None:
        """out = x w, added to what stands in `out` (a residual) when `add` is not 0."""
        with self.totals():
            if self.layout.plain:
                self.plain(activations == "bfloat16")
            elif activations == "float32":
                self.with_float()
            else:
                self.with_integers(PARTS[activations])

    @contextmanager
    def totals(self) -> Iterator[None]:
        """What is added up meanwhile, from `out` on and to there."""
        e = self.e
        self.total = [e.variable(e.constant(0.0)) for _ in self.rows]
        with e.b.if_then(e.b.icmp_signed("!=", self.add, I64(0))):
            for r in self.rows:
                with self._if_held(r):
                    e.b.store(e.load(self.out[r]), self.total[r])
        yield
        for r in self.rows:
            with self._if_held(r):
                e.store(e.b.load(self.total[r]), self.out[r])

    def _if_held(self, r: int) -> AbstractContextManager[Any]:
        """What is done only if row r is there."""
        if self.held is None:
            return nullcontext()
        b = self.e.b
        there: AbstractContextManager[Any] = b.if_then(
            b.icmp_unsigned(">", self.held, I64(r)), likely=True
        )
        return there

    def add_up(
        self,
        r: int,
        factors: tuple[ir.Value, ir.Value],
        scale: ir.Value,
        of_rounded: ir.Value,
        sums: list[ir.Value],
    ) -> None:
        """Add the sums of a block's (or half a block's) products to row r's total; addresses of
        the activations' scale and of the sum of their rounded values."""
        e = self.e
        b = self.e.b
        d, m = factors
        value = e.fma(m, e.broadcast(of_rounded), b.load(self.total[r]))
        factor = b.fmul(d, e.broadcast(scale))
        whole = sums[0]
        if len(sums) == 2:
            whole = b.add(b.shl(whole, e.constant(8, V16I)), sums[1])
        b.store(e.fma(b.sitofp(whole, V16F), factor, value), self.total[r])

    def with_integers(self, parts: int) -> None:
        """s: [blocks][step's rows][4], the scale of a row's block and the sums of its rounded
        values, of their first half and of their second half.

        x: [blocks][step's rows][parts][32], signed bytes: a row's block; with two parts its high
        bytes and its low ones. So what a block of these rows needs is found at constant distances
        from one address: the processor has not enough registers for one of each row.
        """
        e = self.e
        dot = ByteDot(e, 4 if self.layout.bits == 4 else 8, self.form)
        with e.loop(self.blocks) as loop:
            block = self.block(loop.index)
            scales = self.weights.scales(block)
            words = _WORDS // len(scales)
            x = self.values_of(loop.index, parts)
            s = self.scales_of(loop.index)
            for half, factors in enumerate(scales):
                acc = [[dot.zero() for _ in range(parts)] for _ in self.rows]
                for j in range(words * half, words * half + words):
                    weight = dot.prepare(self.weights.word(block, j))
                    for r in self.rows:
                        for part in range(parts):
                            place = e.at(x, (r * parts + part) * BLOCK + 4 * j)
                            acc[r][part] = dot.add(
                                acc[r][part], weight, e.broadcast(place, I32)
                            )
                for r in self.rows:
                    sums = [dot.total(part) for part in acc[r]]
                    scale = e.at(s, r * SCALES_BYTES)
                    which = 1 if len(scales) == 1 else 2 + half
                    self.add_up(r, factors, scale, e.at(scale, 4 * which), sums)

    def with_float(self) -> None:
        """s: [blocks][step's rows][4], first the sum of a row's block (not used where there is a
        zero)."""
        e = self.e
        b = self.e.b
        unit = e.constant(2.0**-24)  # see BlockReader.number
        with e.loop(self.blocks) as loop:
            block = self.block(loop.index)
            scales = self.weights.scales(block)
            inputs = BLOCK // len(scales)
            s = self.scales_of(loop.index)
            for half, (d, m) in enumerate(scales):
                acc = [e.constant(0.0) for _ in self.rows]
                for i in range(inputs * half, inputs * half + inputs):
                    weight = self.weights.number(block, i)
                    for r in self.rows:
                        value = e.broadcast(
                            e.at(self.row(r), e.times(loop.index, 4 * BLOCK), 4 * i)
                        )
                        acc[r] = e.fma(weight, value, acc[r])
                if self.layout.bits == 8:
                    d = b.fmul(d, unit)
                for r in self.rows:
                    value = b.load(self.total[r])
                    if self.layout.zero is None:
                        place = e.at(s, r * SCALES_BYTES)
                        value = e.fma(m, e.broadcast(place), value)
                    b.store(e.fma(acc[r], d, value), self.total[r])

    def values_of(self, block: ir.Value, parts: int) -> ir.Value:
        """Where a block of the first row lies, as with_integers() reads it."""
        return self._of_block(self.x, block, parts * BLOCK)

    def scales_of(self, block: ir.Value) -> ir.Value:
        """Where what goes with it lies."""
        return self._of_block(self.s, block, SCALES_BYTES)

    def _of_block(self, start: ir.Value, block: ir.Value, size: int) -> ir.Value:
        e = self.e
        return e.at(start, e.times(e.times(block, self.step_rows), size))

    def row(self, r: int) -> ir.Value:
        """Where row r lies, whose values lie one behind the other."""
        return self.e.at(self.x, self.e.times(self.x_row, r))

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
                    place = e.at(self.row(r), e.times(loop.index, 32), 4 * i)
                    value = b.load(self.total[r])
                    if bfloat:
                        b.store(
                            e.dot_bf16(value, weight, e.broadcast(place, I32)),
                            self.total[r],
                        )
                    else:
                        b.store(e.fma(weight, e.broadcast(place), value), self.total[r])
