"""Attention over a paged cache on the CPU: one kernel for prefill chunks, decodes and pieces of
other KV groups.

The pool keeps each head's tokens in tiles (attention_tile.py), so pages are read in place and never
gathered. The query heads that share a key head are rows of one block, so keys and values are read
once.
"""

# ruff: noqa: ANN001, ANN201, ANN202  (compiled functions take integers, records and arrays)
from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
from llvmlite import ir

from medha_actors.model.kernels.attention_integers import rows_in_integers
from medha_actors.model.kernels.attention_matrix import (
    DIMS,
    SCRATCH_BYTES,
    rows_in_tiles,
)
from medha_actors.model.kernels.attention_tile import (
    STATE_EXTRA,
    TILE,
    TILE_ROWS,
    Form,
    tile,
    weight_bytes,
)
from medha_actors.model.kernels.ir import (
    HAS_VNNI,
    I64,
    QUICK_BF16,
    Emit,
    address,
    call_address,
    compiled,
    kernel,
    machine_code,
    with_kernel,
)
from medha_actors.model.kernels.matrix_tiles import PERMITTED, ROWS, TileRegisters
from medha_actors.model.kernels.pack import aligned

BLOCK_TOKENS = 256  # query tokens whose states are kept at once
SPARE_ROWS = ROWS  # behind queries and states: tile registers reach so far


def _rows(form: Form) -> Callable[..., None]:
    def emit(
        e: Emit, rows: ir.Value, dims: ir.Value, q: ir.Value, keys: ir.Value, values: ir.Value,
        state: ir.Value, limits: ir.Value, start: ir.Value, first: ir.Value, p: ir.Value,
        next_keys: ir.Value, next_values: ir.Value,
    ) -> None:  # fmt: skip
        done = I64(0)
        q_row = e.times(dims, weight_bytes(form))
        state_row = e.times(e.at(dims, STATE_EXTRA), 4)
        for size in TILE_ROWS:
            tiles = e.b.udiv(e.b.sub(rows, done), I64(size))
            with e.loop(tiles) as loop:
                row = e.at(done, e.times(loop.index, size))
                q_at, state_at, limits_at = [
                    e.at(base, e.times(row, step))
                    for base, step in ((q, q_row), (state, state_row), (limits, 8))
                ]
                tile(
                    e,
                    size,
                    form,
                    dims,
                    q_at,
                    keys,
                    values,
                    state_at,
                    limits_at,
                    start,
                    first,
                    p,
                    next_keys,
                    next_values,
                )
            done = e.at(done, e.times(tiles, size))

    return emit


def _code(
    rows, dims, q, keys, values, state, limits, start, first, p, next_keys, next_values
):
    _kernel(  # noqa: F821
        rows,
        dims,
        q,
        keys,
        values,
        state,
        limits,
        start,
        first,
        p,
        next_keys,
        next_values,
    )


def form_of(bfloat: bool, head_dim: int) -> Form:
    """How rows attend to a pool of 16 bits (`bfloat`) or of float32 on this machine."""
    if not bfloat:
        return "float"
    if PERMITTED and head_dim % DIMS == 0:
        return "registers"
    if QUICK_BF16:
        return "pairs"
    return "integers" if HAS_VNNI and not PERMITTED else "widened"


@cache
def tile_address(form: Form, registers: type[TileRegisters] = TileRegisters) -> int:
    """Machine code that lets rows attend to one tile: (rows, then the arguments of `tile`)."""
    if form == "registers":
        emit = rows_in_tiles(registers)
    else:
        emit = rows_in_integers if form == "integers" else _rows(form)
    name = f"rows_{form}_{registers.__name__}"
    return machine_code(with_kernel(_code, kernel(12, emit), name), 12)


def scratch_of(rows: int, dims: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What attend() needs for so many rows: states, limits, and room for scores and weights."""
    states = aligned((rows + SPARE_ROWS) * (dims + STATE_EXTRA), np.float32)
    return (
        states.reshape(-1, dims + STATE_EXTRA),
        np.zeros(rows, np.int64),
        aligned(max(6 * TILE, SCRATCH_BYTES // 4), np.float32),
    )


_call_rows = kernel(13, call_address)


@compiled
def _finish(state, rows, share, dims, visible, out, lse):
    """What the states of rows come to: out and lse, see attend()."""
    for r in range(rows):
        total = np.float32(0)
        for lane in range(16):
            total += state[r, dims + lane]
        row = r // share
        head = r % share
        if visible == 0:
            out[row, head] = 0
            lse[row, head] = -np.inf
            continue
        inverse = np.float32(1) / total
        for d in range(dims):
            out[row, head, d] = state[r, d] * inverse
        lse[row, head] = np.float32(
            (state[r, dims + 16] + math.log2(total)) * 0.6931471805599453
        )


@compiled
def attend(
    code, q, query_bytes, tokens, share, dims, bfloat, keys, values, page_bytes, page_tiles,
    pages, cached, writes, scratch, out, lse,
):  # fmt: skip
    """One key head's `share` query heads of `tokens` (at most BLOCK_TOKENS) consecutive tokens of
    one request.

    code: see tile_address; q: address of [tokens, share, dims], times log2(e) / sqrt(dims), of
    query_bytes each (see weight_bytes; integers: as put_query leaves them), with SPARE_ROWS more
    behind; scratch: see scratch_of;
    keys, values: addresses of this head in page 0;
    pages: int32 numbers of the piece's pages; cached: keys all tokens see; writes: token i also
    sees i + 1 more. out float32 [tokens, share, dims] and lse float32 [tokens, share] (natural
    logarithm) are written.
    """
    state, limits, p = scratch
    rows = tokens * share
    visible = cached + tokens * writes
    for r in range(rows):
        limits[r] = cached + (r // share + 1) * writes
        state[r, dims:] = 0  # the outputs are set to zero with the first tile
    size = TILE * dims * (2 if bfloat else 4)
    tiles = (visible + TILE - 1) // TILE
    for t in range(tiles):
        start = t * TILE
        place = pages[t // page_tiles] * page_bytes + t % page_tiles * size
        after = min(t + 1, tiles - 1)
        ahead = pages[after // page_tiles] * page_bytes + after % page_tiles * size
        skip = max(start - cached, 0) * share  # rows that end before this tile
        left = rows - skip
        first = 1 if t == 0 else 0
        row_q = q + skip * dims * query_bytes
        row_state = address(state) + skip * (dims + STATE_EXTRA) * 4
        row_limits = address(limits) + skip * 8
        _call_rows(
            code, left, dims, row_q, keys + place, values + place, row_state, row_limits,
            start, first, address(p), keys + ahead, values + ahead,
        )  # fmt: skip
    _finish(state, rows, share, dims, visible, out, lse)
