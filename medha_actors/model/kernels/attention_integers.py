"""The heart of attention in 16-bit integers, which vpdpwssd multiplies at twice the rate of fma:
some query rows attend to one tile of 64 keys and values.

Keys and values are rounded as they are written and queries as they are projected
(attention_rounding.py, where their layout is), weights here: to so many steps of the largest sum of
a lane that the magnitudes of a row add up to at most 2**16. No sum of products leaves an int32,
since those of a query do no more. A weight is first multiplied with its token's step of the values,
so what the products add up to has one step for each row and tile. States and what else is computed
are attention_tile.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llvmlite import ir

from medha_actors.model.kernels.attention_rounding import (
    LARGEST_SUM,
    pair_words,
    steps_of,
)
from medha_actors.model.kernels.attention_tile import (
    STATE_EXTRA,
    TILE,
    TILE_ROWS,
    TOGETHER,
    VECTORS,
    hide,
    keep_in_range,
)
from medha_actors.model.kernels.ir import F32, I32, I64, V16F, V16I, Emit

PAIRS = TILE // 2  # of tokens
_FEW = 3  # rows that read a tile faster than it comes
# of the weights of a lane: of 16 lanes, and with what rounding adds
_LARGEST_LANE = (LARGEST_SUM - PAIRS) // 16
_SMALLEST_LANE = 2.0**-90  # its inverse, with 2**28 more, is a float32


class Addresses(NamedTuple):
    """Of one tile: keys and values, the next ones, and scratch: weights of up to 6 rows, steps of
    the keys and of the values, float32 [64]."""

    keys: ir.Value
    values: ir.Value
    next_keys: ir.Value
    next_values: ir.Value
    weights: ir.Value
    key_steps: ir.Value
    value_steps: ir.Value


def rows_in_integers(
    e: Emit, rows: ir.Value, dims: ir.Value, q: ir.Value, keys: ir.Value, values: ir.Value,
    state: ir.Value, limits: ir.Value, start: ir.Value, first: ir.Value, p: ir.Value,
    next_keys: ir.Value, next_values: ir.Value,
) -> None:  # fmt: skip
    """Any number of rows; the arguments are attention_tile.tile's, but for the integers."""
    steps = e.at(p, TILE_ROWS[0] * TILE * 2)
    at = Addresses(
        keys, values, next_keys, next_values, p, steps, e.at(steps, TILE * 4)
    )
    _read_steps(e, at)
    state_row = e.times(e.at(dims, STATE_EXTRA), 4)
    done = I64(0)
    for size in TILE_ROWS:
        tiles = e.b.udiv(e.b.sub(rows, done), I64(size))
        with e.loop(tiles) as loop:
            row = e.at(done, e.times(loop.index, size))
            queries = [
                e.at(q, e.times(e.times(dims, 4), e.at(row, r))) for r in range(size)
            ]
            states = [
                e.at(state, e.times(state_row, e.at(row, r))) for r in range(size)
            ]
            scores = _scores(e, dims, queries, at, states)
            hide(e, scores, e.at(limits, e.times(row, 8)), start)
            keep_in_range(e, scores, states, dims, first)
            steps = [
                _weigh(e, dims, score, at, states[r], r)
                for r, score in enumerate(scores)
            ]
            _add_values(e, dims, at, states, steps)
        done = e.at(done, e.times(tiles, size))


def _read_steps(e: Emit, at: Addresses) -> None:
    for c in range(VECTORS):
        steps = steps_of(e, e.at(at.keys, 64 * c))
        for step, place in zip(steps, (at.key_steps, at.value_steps), strict=True):
            e.store(step, e.at(place, 64 * c), align=64)


def _products(
    e: Emit,
    vectors: int,
    count: ir.Value | int,
    words: ir.Value,
    next_words: ir.Value,
    distance: ir.Value,
    factors: Sequence[ir.Value],
) -> list[list[ir.Value]]:
    """For each row the sums of products of `count` times so many vectors of words, `distance` bytes
    apart, with words of its factors; as they are read, those of the next tile are asked for."""
    nothing = e.constant(0, V16I)
    totals = [[e.variable(nothing) for _ in range(vectors)] for _ in factors]
    with e.loop(count) as loop:
        skip = e.times(loop.index, distance)
        parts = [e.load(e.at(words, skip, 64 * c), V16I, 64) for c in range(vectors)]
        if len(factors) <= _FEW:
            e.prefetch(e.at(next_words, skip), 64 * vectors)
        for row, factor in zip(totals, factors, strict=True):
            word = e.broadcast(e.at(factor, e.times(loop.index, 4)), I32)
            for total, part in zip(row, parts, strict=True):
                e.b.store(e.dot_int16(e.b.load(total), part, word), total)
    return [[e.b.load(total) for total in row] for row in totals]


def _scores(
    e: Emit,
    dims: ir.Value,
    queries: list[ir.Value],
    at: Addresses,
    states: list[ir.Value],
) -> list[list[ir.Value]]:
    """q k - m for each row, in VECTORS registers."""
    b = e.b
    pairs = b.udiv(dims, I64(2))
    distance = I64(4 * TILE)
    found: list[list[ir.Value]] = [[] for _ in queries]
    for group in range(0, VECTORS, TOGETHER):
        words, next_words = [
            e.at(start, 64 * group) for start in (at.keys, at.next_keys)
        ]
        sums = _products(e, TOGETHER, pairs, words, next_words, distance, queries)
        for row, query, state, totals in zip(found, queries, states, sums, strict=True):
            exponent = e.at(state, e.times(e.at(dims, 16), 4))
            lowered = e.splat(b.fneg(e.load(exponent, F32)))
            step = e.broadcast(e.at(query, e.times(dims, 2)))
            for c, total in enumerate(totals, group):
                key_step = e.load(e.at(at.key_steps, 64 * c), align=64)
                score = b.fmul(b.sitofp(total, V16F), key_step)
                row.append(e.variable(e.fma(score, step, lowered)))
    return found


def _weigh(
    e: Emit,
    dims: ir.Value,
    scores: list[ir.Value],
    at: Addresses,
    state: ir.Value,
    row: int,
) -> ir.Value:
    """One row's weights, exp2 of its scores, to their partial sums, and times the steps of the
    values, rounded, to the row's place among the weights; returns their step."""
    b = e.b
    weights = [e.exp2(b.load(score), 4) for score in scores]
    sums = e.at(state, e.times(dims, 4))
    e.store(b.fadd(e.load(sums, align=64), _added(e, weights)), sums, align=64)
    scaled = [
        b.fmul(weight, e.load(e.at(at.value_steps, 64 * c), align=64))
        for c, weight in enumerate(weights)
    ]
    lanes = e.maximum(_added(e, scaled), e.constant(_SMALLEST_LANE))
    # positive float32 are ordered as integers are, which takes a third of the instructions
    top = e.call("llvm.vector.reduce.umax.v16i32", I32, b.bitcast(lanes, V16I))
    top = b.bitcast(top, F32)
    factor = e.splat(b.fdiv(F32(_LARGEST_LANE), top))
    for pair in range(VECTORS // 2):
        words = pair_words(e, scaled[2 * pair], scaled[2 * pair + 1], factor)
        e.store(words, e.at(at.weights, row * TILE * 2 + 64 * pair), 64)
    return b.fmul(top, F32(1 / _LARGEST_LANE))


def _added(e: Emit, parts: list[ir.Value]) -> ir.Value:
    halves = [e.b.fadd(*parts[start : start + 2]) for start in (0, 2)]
    return e.b.fadd(*halves)


def _add_values(
    e: Emit,
    dims: ir.Value,
    at: Addresses,
    states: list[ir.Value],
    steps: list[ir.Value],
) -> None:
    """output += p v, for as many dimensions at a time as the registers hold, then 16 at a time."""
    b = e.b
    row = e.times(dims, 4)
    weights = [e.at(at.weights, r * TILE * 2) for r in range(len(states))]

    def columns(start: ir.Value, vectors: int) -> None:
        words, next_words = [e.at(x, start) for x in (at.values, at.next_values)]
        sums = _products(e, vectors, PAIRS, words, next_words, row, weights)
        for state, totals, step in zip(states, sums, steps, strict=True):
            factor = e.splat(step)
            for c, total in enumerate(totals):
                out = e.at(state, start, 64 * c)
                added = e.fma(b.sitofp(total, V16F), factor, e.load(out, align=64))
                e.store(added, out, align=64)

    size = 64 * TOGETHER
    wide = b.udiv(row, I64(size))
    with e.loop(wide) as loop:
        columns(e.times(loop.index, size), TOGETHER)
    done = e.times(wide, size)
    with e.loop(b.udiv(b.sub(row, done), I64(64))) as loop:
        columns(e.at(done, e.times(loop.index, 64)), 1)
