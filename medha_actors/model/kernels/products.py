"""Products of float32 rows with stacked matrices, each of which takes the rows in a form of its
own."""

# ruff: noqa: ANN001, ANN201, ANN202  (compiled functions take integers and records)
from __future__ import annotations

from medha_actors.model.kernels.glue import block_sums, to_bfloat, to_int8, to_int16
from medha_actors.model.kernels.ir import call_address, compiled, kernel
from medha_actors.model.kernels.layouts import BFLOAT, INT8, INT16, SCALES_BYTES

ROWS = 48  # rows of a block: 4 of linear.py's large tiles
PARTS = 3  # matrices of several kinds side by side, in one row of a table
# of a part; one without columns is not there
FORM, CODE, DATA, COLUMNS, BLOCKS, COLUMN_BYTES = range(6)
FIELDS = 6

call = kernel(11, call_address)


@compiled
def _form(model, form, rows, blocks, x, constants):
    """Bring float32 rows into a form of activations, in `packed` and `scales`, as Tile reads
    them."""
    inputs = blocks * 32
    if form == INT8:
        for r in range(rows):
            source = x + r * inputs * 4
            scales = model.scales + r * SCALES_BYTES
            to_int8(source, blocks, rows, model.packed + r * 32, scales)
    elif form == INT16:
        for r in range(rows):
            source = x + r * inputs * 4
            scales = model.scales + r * SCALES_BYTES
            to_int16(source, blocks, rows, model.packed + r * 64, scales)
    elif form == BFLOAT:
        for r in range(rows):
            to_bfloat(
                x + r * inputs * 4, inputs, constants + 8, model.packed + r * inputs * 2
            )
    else:
        for r in range(rows):
            scales = model.scales + r * SCALES_BYTES
            block_sums(x + r * inputs * 4, blocks, rows, scales)


@compiled
def _formed(model, form, blocks, x):
    """Where the first of such rows lies, and the bytes from it to the next."""
    if form == INT8:
        return model.packed, 32
    if form == INT16:
        return model.packed, 64
    if form == BFLOAT:
        return model.packed, blocks * 64
    return x, blocks * 128


@compiled
def width(parts):
    """Outputs of all parts."""
    columns = 0
    for part in parts:
        columns += part[COLUMNS]
    return columns * 16


@compiled
def apply_columns(
    model, parts, rows, x, out, out_row, first, last, add, ready, constants
):
    """out = (out +) x W^T for float32 rows, of the columns [first, last) of W's outputs alone, 16
    outputs each; the outputs of the parts of W lie side by side.

    Each part takes the activations in a form of its own; `ready`: in which one x lies in `packed`
    already (-1: in none); returns in which one it does now. constants: address of (eps, scale,
    one); x is the address of contiguous rows, out that of rows `out_row` bytes apart.
    """
    for part in parts:
        columns = part[COLUMNS]
        start = max(first, 0)
        count = min(last, columns) - start
        if count > 0:
            blocks = part[BLOCKS]
            if part[FORM] != ready:
                ready = part[FORM]
                _form(model, ready, rows, blocks, x, constants)
            source, row = _formed(model, ready, blocks, x)
            call(
                part[CODE],
                rows,
                count,
                blocks,
                part[DATA] + start * part[COLUMN_BYTES],
                source,
                row,
                model.scales,
                out + start * 64,
                out_row,
                add,
            )
        first -= columns
        last -= columns
        out += columns * 64
    return ready


@compiled
def apply(model, parts, rows, x, out, add, constants):
    """The same for all columns, and with contiguous rows of outputs."""
    columns = width(parts) // 16
    apply_columns(
        model, parts, rows, x, out, columns * 64, 0, columns, add, -1, constants
    )
