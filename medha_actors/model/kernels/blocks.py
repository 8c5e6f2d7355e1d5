"""Reads blocks of quantised weights, as layouts.py says they lie, into vectors of 16 outputs."""

from __future__ import annotations

from typing import NamedTuple

from llvmlite import ir

from medha_actors.model.kernels.ir import I32, I64, V16C, V16F, V16H, V16I, V64C, Emit
from medha_actors.model.kernels.layouts import Layout


class Place(NamedTuple):
    """Addresses of a block's parts."""

    values: ir.Value
    scales: ir.Value
    head: ir.Value


class BlockReader:
    """Appends the instructions that read one layout."""

    def __init__(self, e: Emit, layout: Layout) -> None:
        self.e = e
        self.layout = layout

    def word(self, block: Place, j: int) -> ir.Value:
        """q of inputs 4j to 4j + 3, a byte each."""
        e = self.e
        b = self.e.b
        bits = self.layout.bits
        if bits == 8:
            return e.load(e.at(block.values, 64 * j), V16I, 32)
        low = self._moved(
            e.load(e.at(block.values, 64 * (j // 2)), V16I, 32), -4 * (j % 2)
        )
        q = b.and_(low, e.constant(0x0F0F0F0F, V16I))
        if bits == 4:
            return q
        more = bits - 4
        apart = 8 // more  # words whose high bits are in one vector
        high = e.load(e.at(block.values, 64 * (4 + j // apart)), V16I, 32)
        mask = 0x10101010 if more == 1 else 0x30303030
        return b.or_(
            q, b.and_(self._moved(high, 4 - more * (j % apart)), e.constant(mask, V16I))
        )

    def _moved(self, x: ir.Value, bits: int) -> ir.Value:
        """x shifted to the left."""
        amount = self.e.constant(abs(bits), V16I)
        return self.e.b.shl(x, amount) if bits > 0 else self.e.b.lshr(x, amount)

    def number(self, block: Place, i: int) -> ir.Value:
        """q - zero of input i as float32; 2**24 times that where it has 8 bits."""
        e = self.e
        b = self.e.b
        if self.layout.bits == 8:
            return self._byte(block, i)
        q = b.lshr(self.word(block, i // 4), e.constant(8 * (i % 4), V16I))
        q = b.and_(q, e.constant(255, V16I))
        return b.sitofp(b.sub(q, e.constant(self.layout.zero or 0, V16I)), V16F)

    def _byte(self, block: Place, i: int) -> ir.Value:
        """2**24 (q - 128) of input i: the byte is moved to the top of its word, which takes one
        instruction."""
        b = self.e.b
        raw = self.word(block, i // 4)
        signed = b.bitcast(b.xor(raw, self.e.constant(0x80808080, V16I)), V64C)
        order = [
            4 * (place // 4) + i % 4 if place % 4 == 3 else 64 for place in range(64)
        ]
        moved = b.shuffle_vector(
            signed,
            ir.Constant(V64C, [0] * 64),
            ir.Constant(ir.VectorType(I32, 64), order),
        )
        return b.sitofp(b.bitcast(moved, V16I), V16F)

    def place(self, column: ir.Value, number: ir.Value) -> Place:
        """Where a block of a column is."""
        e = self.e
        layout = self.layout
        group = e.b.udiv(number, I64(layout.group))
        within = e.b.urem(number, I64(layout.group))
        start = e.at(column, e.times(group, layout.group_bytes))
        scales = e.at(start, layout.group * layout.value_bytes)
        return Place(
            e.at(start, e.times(within, layout.value_bytes)),
            e.at(scales, e.times(within, layout.scale_bytes)),
            e.at(scales, layout.group * layout.scale_bytes),
        )

    def prefetch(self, place: Place, distance: ir.Value) -> None:
        """Ask for the block so many bytes further on."""
        self.e.prefetch(self.e.at(place.values, distance), self.layout.value_bytes)
        self.e.prefetch(self.e.at(place.scales, distance), self.layout.scale_bytes)
        if self.layout.group > 1:
            self.e.prefetch(self.e.at(place.head, distance), 64)

    def column_bytes(self, blocks: ir.Value) -> ir.Value:
        """Of a column of so many blocks."""
        groups = self.e.b.udiv(blocks, I64(self.layout.group))
        return self.e.times(groups, self.layout.group_bytes)

    def scales(self, block: Place) -> list[tuple[ir.Value, ir.Value]]:
        """d and m of w = d q + m, for the whole block or for each half."""
        e = self.e
        b = self.e.b
        layout = self.layout
        if layout.group == 1:
            d = self._float16(block.scales)
            if layout.zero is None:
                return [(d, self._float16(e.at(block.scales, 32)))]
            return [(d, b.fmul(d, e.constant(-float(layout.zero))))]
        d = self._float16(block.head)
        first, second = (
            e.load(e.at(block.scales, place), V16C, 16) for place in (0, 16)
        )
        if layout.zero is None:
            m = self._float16(e.at(block.head, 32))
            factors = (b.uitofp(b.zext(part, V16I), V16F) for part in (first, second))
            return [(b.fmul(d, next(factors)), b.fmul(m, next(factors)))]
        both = [
            b.fmul(d, b.sitofp(b.sext(part, V16I), V16F)) for part in (first, second)
        ]
        return [(part, b.fmul(part, e.constant(-float(layout.zero)))) for part in both]

    def _float16(self, place: ir.Value) -> ir.Value:
        return self.e.b.fpext(self.e.load(place, V16H, 32), V16F)
