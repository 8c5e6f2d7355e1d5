"""The heart of attention in the tile registers of Intel's AMX: up to 16 query rows attend to one
tile of 64 keys and values.

What is computed, and how keys, values and states lie in memory, is attention_tile.py's; both lie as
the registers read them. All rows of a step pass here, few or many, since the registers add up a
product in an order of their own. Where there are 16 or more the registers hold 16 each time: those
behind the last one compute what nobody reads, so queries and states need room for them.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from medha_actors.model.kernels.attention_tile import (
    STATE_EXTRA,
    TILE,
    VECTORS,
    hide,
    keep_in_range,
    weigh,
)
from medha_actors.model.kernels.ir import F32, I64, Emit
from medha_actors.model.kernels.matrix_tiles import ROWS, Shapes, TileRegisters

DIMS = 32  # a register's, of a query: head_dim is a multiple
SCRATCH_BYTES = ROWS * TILE * (4 + 2)  # scores and weights
_SHAPES = Shapes(sums=range(4), rows=(4, 5), others=(6, 7), row_bytes=64)


def rows_in_tiles(registers: type[TileRegisters]) -> Callable[..., None]:
    """Any number of rows, bfloat16; the arguments are attention_tile.tile's, but for p:
    SCRATCH_BYTES of it."""

    def emit(
        e: Emit, rows: ir.Value, dims: ir.Value, q: ir.Value, keys: ir.Value, values: ir.Value,
        state: ir.Value, limits: ir.Value, start: ir.Value, first: ir.Value, p: ir.Value,
        next_keys: ir.Value, next_values: ir.Value,
    ) -> None:  # fmt: skip
        b = e.b
        held = registers(e, _SHAPES)
        few = b.icmp_unsigned("<", rows, I64(ROWS))
        held.configure(b.select(few, rows, I64(ROWS)))
        # many rows are busy with a tile for longer than the next one takes to come
        parts = b.select(few, b.udiv(dims, I64(16)), I64(0))
        with e.loop(parts) as loop:
            skip = e.times(loop.index, TILE * 32)
            e.prefetch(e.at(next_keys, skip), TILE * 32)
            e.prefetch(e.at(next_values, skip), TILE * 32)
        state_row = e.times(e.at(dims, STATE_EXTRA), 4)
        scores = p
        weights = e.at(p, ROWS * TILE * 4)
        with e.loop(b.udiv(e.at(rows, ROWS - 1), I64(ROWS))) as loop:
            row = e.times(loop.index, ROWS)
            left = b.sub(rows, row)
            count = b.select(b.icmp_signed("<", left, I64(ROWS)), left, I64(ROWS))
            states = e.at(state, e.times(row, state_row))
            _scores(held, e.at(q, e.times(e.times(row, dims), 2)), dims, keys, scores)
            with e.loop(count) as one:
                _weigh(
                    e,
                    dims,
                    e.at(scores, e.times(one.index, TILE * 4)),
                    e.at(weights, e.times(one.index, TILE * 2)),
                    e.at(states, e.times(one.index, state_row)),
                    e.at(limits, e.times(e.at(row, one.index), 8)),
                    start,
                    first,
                )
            _add_values(held, dims, weights, values, states, state_row)
        held.release()

    return emit


def _scores(
    registers: TileRegisters,
    q: ir.Value,
    dims: ir.Value,
    keys: ir.Value,
    out: ir.Value,
) -> None:
    """out = q k of 16 rows, float32 [16, TILE]."""
    e = registers.e
    x = _SHAPES.rows[0]
    for c in range(VECTORS):
        registers.zero(c)
    with e.loop(e.b.udiv(dims, I64(DIMS))) as loop:
        registers.load(x, e.at(q, e.times(loop.index, 2 * DIMS)), e.times(dims, 2))
        part = e.at(keys, e.times(loop.index, DIMS // 2 * 4 * TILE))
        for c in range(VECTORS):
            key = _SHAPES.others[c % 2]
            registers.load(key, e.at(part, 64 * c), I64(4 * TILE))
            registers.multiply("tdpbf16ps", c, x, key)
    for c in range(VECTORS):
        registers.store(c, e.at(out, 64 * c), I64(4 * TILE))


def _weigh(
    e: Emit,
    dims: ir.Value,
    scores: ir.Value,
    weights: ir.Value,
    state: ir.Value,
    limits: ir.Value,
    start: ir.Value,
    first: ir.Value,
) -> None:
    """One row: weights = exp2(score - m) of the keys that it may see, bfloat16, and their sums."""
    sums = e.at(state, e.times(dims, 4))
    start_at = e.splat(e.b.fneg(e.load(e.at(sums, 64), F32)))
    found = [
        e.variable(e.b.fadd(e.load(e.at(scores, 64 * c)), start_at))
        for c in range(VECTORS)
    ]
    hide(e, [found], limits, start)
    keep_in_range(e, [found], [state], dims, first)
    weigh(e, found, "registers", sums, weights)


def _add_values(
    registers: TileRegisters,
    dims: ir.Value,
    weights: ir.Value,
    values: ir.Value,
    states: ir.Value,
    state_row: ir.Value,
) -> None:
    """The states' outputs += weights v, for 32 dimensions at a time."""
    e = registers.e
    value_row = e.times(dims, 4)
    for part, register in enumerate(_SHAPES.rows):
        registers.load(register, e.at(weights, 64 * part), I64(2 * TILE))
    with e.loop(e.b.udiv(dims, I64(32))) as loop:
        for c in range(2):
            out = e.at(states, e.times(loop.index, 128), 64 * c)
            registers.load(c, out, state_row)
            for part, register in enumerate(_SHAPES.rows):
                value = _SHAPES.others[part]
                skip = e.times(value_row, ROWS * part)
                place = e.at(values, skip, e.times(loop.index, 128), 64 * c)
                registers.load(value, place, value_row)
                registers.multiply("tdpbf16ps", c, register, value)
            registers.store(c, out, state_row)
