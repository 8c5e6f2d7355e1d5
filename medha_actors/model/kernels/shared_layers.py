"""The layers of a stage that ranks on one host share: what each has of a sum goes straight into its
buffer on the board (board.py), and the sum from there into the residual stream.

All layers are one call, as for one rank. When others keep this rank waiting, the call returns False
and goes on from where it was when it is made again: `at` says where that is.
"""

# ruff: noqa: ANN001, ANN201  (compiled functions take integers, records and arrays)
from __future__ import annotations

from medha_actors.model.kernels.board import add_parts
from medha_actors.model.kernels.counters import store, wait
from medha_actors.model.kernels.ir import address, compiled
from medha_actors.model.kernels.layers import before, between, feed, project

# in `at`: the layer, whether its attention is done, the first row of the block under
# way, which of its two sums is next, and whether this rank has given its part of that
LAYER, ATTENDED, ROW, SUM, GIVEN = range(5)


@compiled
def after_shared(
    model, linears, vectors, experts, layer, step, x, board, number, at, spins
):
    """Output projection and gated MLP or experts of all ranks, both added to x, float32 [rows,
    hidden]."""
    rank, block, floats, counters, buffers = board
    numbers = counters.copy()
    while at[ROW] < len(x):
        start = at[ROW]
        count = min(block, len(x) - start)
        if not at[GIVEN]:
            number[0] += 1
            out = address(floats) + 4 * buffers[number[0] & 1, rank]
            if at[SUM] == 0:
                project(
                    model, linears, vectors, experts, layer, step, start, count, out, 0
                )
            else:
                feed(
                    model, linears, vectors, experts, layer, step, start, count, out, 0
                )
            store(counters[rank], number[0])
            at[GIVEN] = 1
        numbers[:] = number[0]
        if not wait(counters, numbers, spins):
            return False
        add_parts(x[start : start + count], floats, buffers[number[0] & 1])
        at[GIVEN] = 0
        at[ROW] = start + count * at[SUM]
        at[SUM] = 1 - at[SUM]
    at[ROW] = 0
    return True


@compiled
def layers_shared(
    model, linears, vectors, experts, step, slots, spans, pages, scratch, out, lse, x, board,
    number, at, spins,
):  # fmt: skip
    """All layers, where no span is shared between KV groups."""
    while at[LAYER] < len(linears):
        layer = at[LAYER]
        if not at[ATTENDED]:
            before(model, linears, vectors, layer, step, slots)
            between(model, layer, step, spans, pages, scratch, out, lse)
            at[ATTENDED] = 1
        if not after_shared(
            model, linears, vectors, experts, layer, step, x, board, number, at, spins
        ):
            return False
        at[ATTENDED] = 0
        at[LAYER] += 1
    return True
