"""The heart of attention on the CPU: some query rows attend to one tile of keys and values.

A tile is 64 tokens of one head in the order in which the dot products read them:
  keys    [head_dim / 2][64 tokens] words, each a pair of neighbouring dimensions (bfloat16),
          or [head_dim][64] float32
  values  [32 pairs of tokens][head_dim] words, each the same dimension of two tokens (bfloat16),
          or [64][head_dim] float32
For each row there is a state: the unnormalised output [head_dim], 16 partial sums of the weights
and the reference exponent m. A tile adds exp2(score - m); m moves only when a score exceeds it by
2**8, which float32 sums and bfloat16 weights have room for. Accumulation is float32 throughout;
bfloat16 are q, k, v and the weights.
"""

from __future__ import annotations

from llvmlite import ir

from medha_actors.model.kernels.ir import (
    F32,
    I16,
    I32,
    I64,
    V16F,
    V16I,
    WIDE,
    Emit,
)

TILE = 64  # tokens
VECTORS = TILE // 16
# floats of a row's state behind the output: 16 partial sums, m, padding
STATE_EXTRA = 32
# vectors of a row that are summed at a time: what the registers hold
TOGETHER = VECTORS if WIDE else 1
_HEADROOM = 8.0
_HIDDEN = -1e30


def tile(
    e: Emit, rows: int, bfloat: bool, dims: ir.Value, q: ir.Value, keys: ir.Value, values: ir.Value,
    state: ir.Value, limits: ir.Value, start: ir.Value, first: ir.Value, p: ir.Value,
    next_keys: ir.Value, next_values: ir.Value,
) -> None:  # fmt: skip
    """`rows` rows attend to one tile.

    q [rows, dims]; limits int64 [rows]: keys each row may see, of which `start` lie before this
    tile; `first` is 1 for the first tile of a row; p is scratch for the weights; the next tile's
    addresses are prefetched.
    """
    size = 2 if bfloat else 4
    state_row = e.times(e.at(dims, STATE_EXTRA), 4)
    sums = e.times(dims, 4)
    states = [e.at(state, e.times(state_row, r)) for r in range(rows)]
    scores = _scores(e, rows, bfloat, dims, q, keys, states, next_keys)
    hide(e, scores, limits, start)
    keep_in_range(e, scores, states, dims, first)
    for r in range(rows):
        weigh(e, scores[r], bfloat, e.at(states[r], sums), e.at(p, r * TILE * size))
    _add_values(e, bfloat, dims, p, values, states, next_values)


def weigh(
    e: Emit, scores: list[ir.Value], bfloat: bool, sums: ir.Value, out: ir.Value
) -> None:
    """One row's weights, exp2 of its scores, to `out` and to their partial sums."""
    total = e.load(sums, align=64)
    for c, score in enumerate(scores):
        weight = e.exp2(e.b.load(score), 4 if bfloat else 6)
        total = e.b.fadd(total, weight)
        rounded = e.bfloat(weight) if bfloat else weight
        e.store(rounded, e.at(out, 16 * c * (2 if bfloat else 4)), align=32)
    e.store(total, sums, align=64)


def _dot(e: Emit, bfloat: bool, acc: ir.Value, x: ir.Value, y: ir.Value) -> ir.Value:
    return (
        e.dot_bf16(acc, x, y)
        if bfloat
        else e.fma(e.b.bitcast(x, V16F), e.b.bitcast(y, V16F), acc)
    )


def _scores(
    e: Emit, rows: int, bfloat: bool, dims: ir.Value, q: ir.Value, keys: ir.Value,
    states: list[ir.Value], next_keys: ir.Value,
) -> list[list[ir.Value]]:  # fmt: skip
    """q k - m for each row, in VECTORS registers."""
    b = e.b
    pair = 2 if bfloat else 1
    q_row = e.times(dims, 4 // pair)
    exponent = e.times(e.at(dims, 16), 4)
    scores = []
    for r in range(rows):
        start = e.splat(b.fneg(e.load(e.at(states[r], exponent), F32)))
        scores.append([e.variable(start) for _ in range(VECTORS)])
    for group in range(0, VECTORS, TOGETHER):
        with e.loop(b.udiv(dims, I64(pair))) as loop:
            offset = e.at(e.times(loop.index, 4 * TILE), 64 * group)
            key = [
                e.load(e.at(keys, offset, 64 * c), V16I, 64) for c in range(TOGETHER)
            ]
            if rows <= 3:
                e.prefetch(e.at(next_keys, offset), 64 * TOGETHER)
            for r in range(rows):
                query = e.broadcast(
                    e.at(q, e.times(q_row, r), e.times(loop.index, 4)), I32
                )
                for c in range(TOGETHER):
                    score = scores[r][group + c]
                    b.store(_dot(e, bfloat, b.load(score), key[c], query), score)
    return scores


def hide(
    e: Emit, scores: list[list[ir.Value]], limits: ir.Value, start: ir.Value
) -> None:
    """Take out the keys a row may not see. Limits do not fall from row to row, so the first one
    decides."""
    b = e.b
    with b.if_then(
        b.icmp_signed("<", b.sub(e.load(limits, I64), start), I64(TILE)), likely=False
    ):
        for r, row in enumerate(scores):
            limit = e.splat(
                b.trunc(b.sub(e.load(e.at(limits, 8 * r), I64), start), I32)
            )
            for c, score in enumerate(row):
                numbers = ir.Constant(V16I, list(range(16 * c, 16 * c + 16)))
                seen = b.icmp_signed("<", numbers, limit)
                b.store(b.select(seen, b.load(score), e.constant(_HIDDEN)), score)


def keep_in_range(
    e: Emit,
    scores: list[list[ir.Value]],
    states: list[ir.Value],
    dims: ir.Value,
    first: ir.Value,
) -> None:
    """Move m up (and scale what was summed) where a score grew past the headroom; set it in a row's
    first tile."""
    b = e.b
    tops = []
    for row in scores:
        top = b.load(row[0])
        for score in row[1:]:
            top = e.maximum(top, b.load(score))
        tops.append(top)
    highest = tops[0]
    for top in tops[1:]:
        highest = e.maximum(highest, top)
    grown = b.bitcast(b.fcmp_ordered(">", highest, e.constant(_HEADROOM)), I16)
    is_first = b.icmp_signed("!=", first, I64(0))
    exponent = e.times(e.at(dims, 16), 4)
    with b.if_then(b.or_(b.icmp_unsigned("!=", grown, I16(0)), is_first), likely=False):
        for r, row in enumerate(scores):
            top = e.largest(tops[r])
            rise = b.select(
                b.or_(is_first, b.fcmp_ordered(">", top, F32(_HEADROOM))), top, F32(0)
            )
            place = e.at(states[r], exponent)
            e.store(b.fadd(e.load(place, F32), rise), place)
            rises = e.splat(rise)
            for score in row:
                b.store(b.fsub(b.load(score), rises), score)
            factor = e.exp2(b.fneg(rises), 6)
            with e.loop(e.at(b.udiv(dims, I64(16)), 1)) as loop:
                old = e.at(states[r], e.times(loop.index, 64))
                scaled = b.fmul(e.load(old, align=64), factor)
                e.store(b.select(is_first, e.constant(0.0), scaled), old, align=64)


def _add_values(
    e: Emit,
    bfloat: bool,
    dims: ir.Value,
    p: ir.Value,
    values: ir.Value,
    states: list[ir.Value],
    next_values: ir.Value,
) -> None:
    """output += p v, for as many dimensions at a time as the registers hold, then 16 at a time."""
    b = e.b
    pair = 2 if bfloat else 1

    def columns(start: ir.Value, vectors: int) -> None:
        places = [[e.at(s, start, 64 * c) for c in range(vectors)] for s in states]
        out = [[e.variable(e.load(place, align=64)) for place in row] for row in places]
        with e.loop(TILE // pair) as loop:
            offset = e.at(e.times(e.times(loop.index, 4), dims), start)
            value = [
                e.load(e.at(values, offset, 64 * c), V16I, 64) for c in range(vectors)
            ]
            if len(states) <= 3:
                e.prefetch(e.at(next_values, offset), 64 * vectors)
            for r, row in enumerate(out):
                weight = e.broadcast(
                    e.at(p, e.times(loop.index, 4), r * TILE * 4 // pair), I32
                )
                for c in range(vectors):
                    b.store(_dot(e, bfloat, b.load(row[c]), value[c], weight), row[c])
        for row, row_places in zip(out, places, strict=True):
            for value, place in zip(row, row_places, strict=True):
                e.store(b.load(value), place, align=64)

    size = 64 * TOGETHER
    wide = b.udiv(e.times(dims, 4), I64(size))
    with e.loop(wide) as loop:
        columns(e.times(loop.index, size), TOGETHER)
    done = e.times(wide, size)
    with e.loop(b.udiv(b.sub(e.times(dims, 4), done), I64(64))) as loop:
        columns(e.at(done, e.times(loop.index, 64)), 1)
