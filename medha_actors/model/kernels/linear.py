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
prompt is cut into chunks. Where a processor has tile registers, 16 rows at a time pass them
(linear_matrix.py), with the same result.
"""

# ruff: noqa: ANN001, ANN202  (compiled functions take integers, records and arrays)
from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from llvmlite import ir

from medha_actors.model.kernels.blocks import BlockReader
from medha_actors.model.kernels.dot import FORM, Form
from medha_actors.model.kernels.ir import (
    I64,
    WIDE,
    Emit,
    kernel,
    machine_code,
    with_kernel,
)
from medha_actors.model.kernels.layouts import SCALES_BYTES, Activations, Layout
from medha_actors.model.kernels.linear_matrix import linear_in_tiles
from medha_actors.model.kernels.linear_tile import PARTS, Tile
from medha_actors.model.kernels.matrix_tiles import PERMITTED, TileRegisters


class Machine(NamedTuple):
    """What the code is made for."""

    form: Form
    wide: bool
    tiles: type[TileRegisters] | None = None


HERE = Machine(FORM, WIDE, TileRegisters if PERMITTED else None)


def tile_rows(layout: Layout, activations: Activations, wide: bool) -> tuple[int, ...]:
    """How many rows are computed together: as many as the registers hold sums of (12 of a block and
    12 totals)."""
    if wide:
        return (12, 4, 2, 1)
    if activations == "int16":
        return (1,)
    return (2, 1) if activations == "int8" and layout.bits > 4 else (4, 1)


def _linear(layout: Layout, activations: Activations, machine: Machine) -> Any:
    tiles = machine.tiles if activations in PARTS and not layout.plain else None

    def emit(
        e: Emit,
        rows: ir.Value,
        columns: ir.Value,
        blocks: ir.Value,
        w: ir.Value,
        x: ir.Value,
        x_row: ir.Value,
        s: ir.Value,
        out: ir.Value,
        out_row: ir.Value,
        add: ir.Value,
    ) -> None:
        b = e.b
        column_bytes = BlockReader(e, layout).column_bytes(blocks)

        def tile_of(
            size: int,
            panel: ir.Value,
            column: ir.Value,
            row: ir.Value,
            add: ir.Value,
            held: ir.Value | None = None,
        ) -> Tile:
            """`size` rows of a column from `row` on, of which `held` are there."""
            place = e.at(out, e.times(out_row, row), e.times(column, 64))
            xr = e.at(x, e.times(x_row, row))
            sr = e.at(s, e.times(row, SCALES_BYTES))
            return Tile(
                e,
                layout,
                machine.form,
                size,
                rows,
                blocks,
                panel,
                xr,
                x_row,
                sr,
                place,
                out_row,
                add,
                held,
            )

        first = I64(0)
        if tiles is not None:
            parts = PARTS[activations]
            first = linear_in_tiles(
                e, tiles, layout, parts, rows, columns, blocks, w, add, tile_of
            )
        with e.loop(columns) as column:
            panel = e.at(w, e.times(column.index, column_bytes))
            row = first
            for size in tile_rows(layout, activations, machine.wide):
                count = b.udiv(b.sub(rows, row), I64(size))
                with e.loop(count) as tile:
                    here = e.at(row, e.times(tile.index, size))
                    tile_of(size, panel, column.index, here, add).emit(activations)
                row = e.at(row, e.times(count, size))

    return kernel(10, emit)


def _code(rows, columns, blocks, w, x, x_row, s, out, out_row, add):
    _kernel(rows, columns, blocks, w, x, x_row, s, out, out_row, add)  # noqa: F821


@cache
def linear_address(
    layout: Layout,
    activations: Activations,
    machine: Machine = HERE,
) -> int:
    """Machine code of the linear layer for one layout and form of activations, compiled on first
    use.

    Its arguments: rows (at most products.ROWS), columns (outputs / 16), blocks (inputs / 32),
    addresses of weights and activations, bytes from one activation row (of a block) to the next,
    address of what goes with the activations (see Tile), address and row bytes of the float32
    output, and whether to add to what stands there.
    """
    of_machine = (machine.form, machine.wide, getattr(machine.tiles, "__name__", ""))
    name = "_".join(map(str, ("linear", layout.name, activations, *of_machine)))
    made = with_kernel(_code, _linear(layout, activations, machine), name)
    return machine_code(made, 10)
