"""Products of float32 rows with stacked matrices, each of which takes the rows in a form of its
own."""

# ruff: noqa: ANN001, ANN201, ANN202  (compiled functions take integers and records)
from __future__ import annotations

from medha_actors.model.kernels.glue import block_sums, to_bfloat, to_int8, to_int16
from medha_actors.model.kernels.ir import call_address, compiled, kernel
from medha_actors.model.kernels.layouts import BFLOAT, INT8, INT16

ROWS = 48  # rows of a block: 4 of linear.py's large tiles
PARTS = 3  # matrices of several kinds side by side, in one row of a table
FORM, CODE, DATA, COLUMNS, BLOCKS = range(
    5
)  # of a part; one without columns is not there

call = kernel(12, call_address)


@compiled
def _form(model, form, rows, blocks, x, constants):
    """Bring float32 rows into a form of activations, in `packed` and `scales`; returns the address
    and the bytes of the first row."""
    inputs = blocks * 32
    if form == INT8:
        for r in range(rows):
            source = x + r * inputs * 4
            to_int8(
                source,
                blocks,
                model.packed + r * inputs,
                model.scales + r * blocks * 16,
            )
        return model.packed, inputs
    if form == INT16:
        for r in range(rows):
            source = x + r * inputs * 4
            to_int16(
                source,
                blocks,
                model.packed + r * inputs * 2,
                model.scales + r * blocks * 16,
            )
        return model.packed, inputs * 2
    if form == BFLOAT:
        for r in range(rows):
            to_bfloat(
                x + r * inputs * 4, inputs, constants + 8, model.packed + r * inputs * 2
            )
        return model.packed, inputs * 2
    for r in range(rows):
        block_sums(x + r * inputs * 4, blocks, model.scales + r * blocks * 16)
    return x, inputs * 4


@compiled
def width(parts):
    """Outputs of all parts."""
    columns = 0
    for part in parts:
        columns += part[COLUMNS]
    return columns * 16


@compiled
def apply(model, parts, rows, x, out, add, constants):
    """out = (out +) x W^T for float32 rows, where the outputs of the parts of W lie side by side.

    Each part takes the activations in a form of its own. constants: address of (eps, scale, one);
    x and out are addresses of contiguous rows.
    """
    out_row = width(parts) * 4
    ready = -1
    start = x
    row = 0
    for part in parts:
        columns = part[COLUMNS]
        blocks = part[BLOCKS]
        if columns == 0:
            continue
        if part[FORM] != ready:
            ready = part[FORM]
            start, row = _form(model, ready, rows, blocks, x, constants)
        scales = model.scales
        step = blocks * 16
        call(
            part[CODE],
            rows,
            columns,
            blocks,
            part[DATA],
            start,
            row,
            scales,
            step,
            out,
            out_row,
            add,
        )
        out += columns * 64
