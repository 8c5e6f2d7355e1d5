"""Linear layers in tile registers: 16 rows by one column of weights in 4 to 8 bits.

A product adds up the inputs of a block (or of half a block, where there are two scales in it), as
dot.ByteDot does. Both are exact, and what becomes of the sums is linear_tile.py's, so both agree to
the last bit, and rows that fill no register take the other way.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

from llvmlite import ir

from medha_actors.model.kernels.blocks import BlockReader
from medha_actors.model.kernels.ir import F32, I8, I64, V16I, Emit
from medha_actors.model.kernels.layouts import BLOCK, SCALES_BYTES, Layout
from medha_actors.model.kernels.linear_tile import Tile
from medha_actors.model.kernels.matrix_tiles import ROWS, Shapes, TileRegisters
from medha_actors.model.kernels.products import ROWS as BLOCK_ROWS

_SUMS_BYTES = ROWS * 64  # of one product: int32 [16 rows][16 outputs]
_SEGMENT = 48  # blocks unpacked at once: 24 KiB stay in the first-level cache
_MOST_TILES = BLOCK_ROWS // ROWS
_TOGETHER = 2  # blocks whose products are under way at once
# rows that are worth registers of their own, and beside others for which the weights
# are unpacked anyway
_WORTH = 12
_WORTH_BESIDE = 5

TileOf = Callable[[int, ir.Value, ir.Value, ir.Value, ir.Value, ir.Value | None], Tile]


class Segment(NamedTuple):
    """Blocks that are computed together: the first one, how many; addresses of their weights,
    unpacked, of the scales of 16 rows (see _Products._gather), and of room for sums."""

    first: ir.Value
    count: ir.Value
    weights: ir.Value
    scales: ir.Value
    sums: ir.Value


def linear_in_tiles(
    e: Emit,
    registers: type[TileRegisters],
    layout: Layout,
    parts: int,
    rows: ir.Value,
    columns: ir.Value,
    blocks: ir.Value,
    w: ir.Value,
    add: ir.Value,
    tile_of: TileOf,
) -> ir.Value:
    """As many of the rows as are worth it; returns their number. A column's weights are unpacked
    once for all of them, a segment at a time; between segments the totals stand in the output.

    The registers hold ROWS rows each time: behind the last one they compute what nobody reads, so
    activations need room for them.

    parts: bytes of an activation; tile_of(size, panel, column, row, add, held): a tile from `row`
    on, of which `held` rows are there.
    """
    b = e.b
    beside = b.icmp_unsigned(">=", rows, I64(ROWS))
    worth = b.select(beside, I64(ROWS - _WORTH_BESIDE), I64(ROWS - _WORTH))
    tiles = b.udiv(b.add(rows, worth), I64(ROWS))
    done = e.times(tiles, ROWS)
    done = b.select(b.icmp_unsigned("<", rows, done), rows, done)
    with b.if_then(b.icmp_unsigned(">", tiles, I64(0))):
        products = _Products(e, registers, layout, parts, tile_of)
        products.of_columns(tiles, done, columns, blocks, w, add)
    return done


class _Products:
    def __init__(
        self,
        e: Emit,
        registers: type[TileRegisters],
        layout: Layout,
        parts: int,
        tile_of: TileOf,
    ) -> None:
        self.e = e
        self.tile_of = tile_of
        self.weights = BlockReader(e, layout)
        self.parts = parts
        self.halves = 2 if layout.halves else 1
        self.inputs = BLOCK // self.halves  # of one product
        self.scales_bytes = 64 * (1 + self.halves)  # of a block and 16 rows
        shapes = Shapes(range(4), (4, 5), (6, 7), self.inputs)
        self.registers = registers(e, shapes)

    def of_columns(
        self,
        tiles: ir.Value,
        rows: ir.Value,
        columns: ir.Value,
        blocks: ir.Value,
        w: ir.Value,
        add: ir.Value,
    ) -> None:
        """All columns of so many tiles with so many rows."""
        e = self.e
        b = self.e.b
        weights = self._room(_SEGMENT * 512)
        scales = self._room(_MOST_TILES * _SEGMENT * self.scales_bytes)
        sums = self._room(_SUMS_BYTES * self.parts * self.halves * _TOGETHER)
        segments = b.udiv(e.at(blocks, _SEGMENT - 1), I64(_SEGMENT))
        column_bytes = self.weights.column_bytes(blocks)
        self.registers.configure(I64(ROWS))
        with e.loop(segments) as number:
            first = e.times(number.index, _SEGMENT)
            left = b.sub(blocks, first)
            fits = b.icmp_unsigned("<", left, I64(_SEGMENT))
            count = b.select(fits, left, I64(_SEGMENT))
            segment = Segment(first, count, weights, scales, sums)
            begun = b.select(b.icmp_unsigned("==", first, I64(0)), add, I64(1))
            self._gather(tiles, segment)
            with e.loop(columns) as column:
                panel = e.at(w, e.times(column.index, column_bytes))
                self._unpack(panel, segment, column_bytes)
                with e.loop(tiles) as loop:
                    row = e.times(loop.index, ROWS)
                    held = b.sub(rows, row)
                    tile = self.tile_of(ROWS, panel, column.index, row, begun, held)
                    part = e.times(loop.index, _SEGMENT * self.scales_bytes)
                    self._multiply(tile, segment._replace(scales=e.at(scales, part)))
        self.registers.release()

    def _gather(self, tiles: ir.Value, segment: Segment) -> None:
        """Bring what goes with the activations into the order in which it is read: for each tile
        and block 16 scales, then the 16 sums of rounded values for each half."""
        e = self.e
        nothing = I64(0)
        with e.loop(tiles) as number, e.loop(segment.count) as loop:
            row = e.times(number.index, ROWS)
            tile = self.tile_of(ROWS, nothing, nothing, row, nothing, None)
            place = e.at(e.times(number.index, _SEGMENT), loop.index)
            into = e.at(segment.scales, e.times(place, self.scales_bytes))
            start = tile.scales_of(e.at(segment.first, loop.index))
            for r in tile.rows:
                source = e.at(start, r * SCALES_BYTES)
                e.store(e.load(source, F32), e.at(into, 4 * r), 4)
                for half in range(self.halves):
                    which = 2 + half if self.halves == 2 else 1
                    total = e.load(e.at(source, 4 * which), F32)
                    e.store(total, e.at(into, 64 * (1 + half), 4 * r), 4)

    def _room(self, count: int) -> ir.Value:
        """The address of `count` bytes on the stack, aligned to 64."""
        with self.e.b.goto_entry_block():
            place = self.e.b.alloca(ir.VectorType(I8, 64), count // 64)
            place.align = 64
        return self.e.b.ptrtoint(place, I64)

    def _unpack(self, panel: ir.Value, segment: Segment, ahead: ir.Value) -> None:
        """Write the weights as the registers read them, 512 bytes a block; the next column's are
        prefetched."""
        e = self.e
        with e.loop(segment.count) as loop:
            block = self.weights.place(panel, e.at(segment.first, loop.index))
            self.weights.prefetch(block, ahead)
            target = e.at(segment.weights, e.times(loop.index, 512))
            for j in range(BLOCK // 4):
                e.store(self.weights.word(block, j), e.at(target, 64 * j), 64)

    def _multiply(self, tile: Tile, segment: Segment) -> None:
        e = self.e
        with tile.totals():
            groups = e.b.udiv(segment.count, I64(_TOGETHER))
            with e.loop(groups) as loop:
                start = e.times(loop.index, _TOGETHER)
                self._some_blocks(tile, segment, _TOGETHER, start)
            done = e.times(groups, _TOGETHER)
            with e.loop(e.b.sub(segment.count, done)) as loop:
                self._some_blocks(tile, segment, 1, e.at(done, loop.index))

    def _some_blocks(
        self, tile: Tile, segment: Segment, count: int, start: ir.Value
    ) -> None:
        """`count` blocks from the segment's `start` on: all products before the first of their sums
        is looked at."""
        e = self.e
        places = itertools.product(range(count), range(self.halves), range(self.parts))
        sums = iter(
            [
                self._product(tile, segment, e.at(start, block), half, part, number)
                for number, (block, half, part) in enumerate(places)
            ]
        )
        for block in range(count):
            index = e.at(segment.first, start, block)
            place = self.weights.place(tile.w, index)
            scales = e.at(
                segment.scales, e.times(e.at(start, block), self.scales_bytes)
            )
            for half, factors in enumerate(self.weights.scales(place)):
                found = [next(sums) for _ in range(self.parts)]
                for r in tile.rows:
                    whole = [e.load(e.at(one, 64 * r), V16I, 64) for one in found]
                    scale = e.at(scales, 4 * r)
                    rounded = e.at(scale, 64 * (1 + half))
                    tile.add_up(r, factors, scale, rounded, whole)

    def _product(
        self,
        tile: Tile,
        segment: Segment,
        block: ir.Value,
        half: int,
        part: int,
        number: int,
    ) -> ir.Value:
        """The address of the sums of one part of the activations. Neighbours take unlike registers,
        so as not to wait for each other."""
        e = self.e
        registers = self.registers
        sums, rows, others = (some[number % len(some)] for some in registers.shapes[:3])
        x = tile.values_of(e.at(segment.first, block), self.parts)
        x = e.at(x, self.inputs * half + BLOCK * part)
        weights = e.at(segment.weights, e.times(block, 512), 256 * half)
        out = e.at(segment.sums, _SUMS_BYTES * number)
        registers.zero(sums)
        registers.load(rows, x, tile.x_row)
        registers.load(others, weights, I64(64))
        registers.multiply("tdpbsud", sums, rows, others)
        registers.store(sums, out, I64(64))
        return out
