"""The heart of attention on the CPU: some query rows attend to one tile of keys and values.

A tile is 64 tokens of one head in the order in which the dot products read them:
  keys    [head_dim / 2][64 tokens] words, each a pair of neighbouring dimensions (bfloat16),
          or [head_dim][64] float32
  values  [32 pairs of tokens][head_dim] words, each the same dimension of two tokens (bfloat16),
          or [64][head_dim] float32
For each row there is a state: the unnormalised output [head_dim], 16 partial sums of the weights
and the reference exponent m. A tile adds exp2(score - m); m moves only when a score exceeds it by
2**8, which float32 sums and bfloat16 weights have room for. Accumulation is float32 throughout.

form       keys and values   q and the weights   a product
float      float32           float32             fma
pairs      bfloat16          bfloat16            vdpbf16ps
widened    bfloat16          float32             fma of each half of a word, which a shift or a mask
                                                 makes float32; rounds nothing but keys and values
registers  bfloat16          bfloat16            of tile registers: attention_matrix.py
integers   int16             int16               vpdpwssd: attention_integers.py
Intel's processors do half as many products a second with vdpbf16ps as with fma, and older ones have
only fma: they widen, or where there is vpdpwssd take integers.
"""

from __future__ import annotations

from typing import Literal

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

Form = Literal["float", "pairs", "widened", "registers", "integers"]

TILE = 64  # tokens
VECTORS = TILE // 16
# floats of a row's state behind the output: 16 partial sums, m, padding
STATE_EXTRA = 32
TILE_ROWS = (6, 3, 1) if WIDE else (3, 1)  # query rows
# vectors of a row that are summed at a time: what the registers hold
TOGETHER = VECTORS if WIDE else 1
_HEADROOM = 8.0
_HIDDEN = -1e30


def tile(
    e: Emit, rows: int, form: Form, dims: ir.Value, q: ir.Value, keys: ir.Value, values: ir.Value,
    state: ir.Value, limits: ir.Value, start: ir.Value, first: ir.Value, p: ir.Value,
    next_keys: ir.Value, next_values: ir.Value,
) -> None:  # fmt: skip
    """`rows` rows attend to one tile.

    q [rows, dims]; limits int64 [rows]: keys each row may see, of which `start` lie before this
    tile; `first` is 1 for the first tile of a row; p is scratch for the weights; the next tile's
    addresses are prefetched.
    """
    size = weight_bytes(form)
    state_row = e.times(e.at(dims, STATE_EXTRA), 4)
    sums = e.times(dims, 4)
    states = [e.at(state, e.times(state_row, r)) for r in range(rows)]
    scores = _scores(e, rows, form, dims, q, keys, states, next_keys)
    hide(e, scores, limits, start)
    keep_in_range(e, scores, states, dims, first)
    for r in range(rows):
        weigh(e, scores[r], form, e.at(states[r], sums), e.at(p, r * TILE * size))
    _add_values(e, form, dims, p, values, states, next_values)


def weight_bytes(form: Form) -> int:
    """Of a weight, and of a value of a query."""
    return 2 if form in ("pairs", "registers") else 4


def weigh(
    e: Emit, scores: list[ir.Value], form: Form, sums: ir.Value, out: ir.Value
) -> None:
    """One row's weights, exp2 of its scores, to `out` and to their partial sums."""
    total = e.load(sums, align=64)
    for c, score in enumerate(scores):
        weight = e.exp2(e.b.load(score), 6 if form == "float" else 4)
        total = e.b.fadd(total, weight)
        rounded = e.bfloat(weight) if weight_bytes(form) == 2 else weight
        e.store(rounded, e.at(out, 16 * c * weight_bytes(form)), align=32)
    e.store(total, sums, align=64)


def _parts(e: Emit, form: Form, word: ir.Value) -> list[ir.Value]:
    """What a vector of the pool's words holds, in the order in which it is added up."""
    if form == "float":
        return [e.b.bitcast(word, V16F)]
    if form == "pairs":
        return [word]
    low = e.b.shl(word, e.constant(16, V16I))
    high = e.b.and_(word, e.constant(0xFFFF0000, V16I))
    return [e.b.bitcast(half, V16F) for half in (low, high)]


def _factors(e: Emit, form: Form, place: ir.Value) -> list[ir.Value]:
    """What each of them is multiplied with, the same for all 16 lanes, from `place` on."""
    if form == "pairs":
        return [e.broadcast(place, I32)]
    count = 2 if form == "widened" else 1
    return [e.broadcast(e.at(place, 4 * number)) for number in range(count)]


def _add_products(
    e: Emit, form: Form, total: ir.Value, parts: list[ir.Value], factors: list[ir.Value]
) -> None:
    """total += parts * factors."""
    value = e.b.load(total)
    for x, y in zip(parts, factors, strict=True):
        value = e.dot_bf16(value, x, y) if form == "pairs" else e.fma(x, y, value)
    e.b.store(value, total)


def _scores(
    e: Emit, rows: int, form: Form, dims: ir.Value, q: ir.Value, keys: ir.Value,
    states: list[ir.Value], next_keys: ir.Value,
) -> list[list[ir.Value]]:  # fmt: skip
    """q k - m for each row, in VECTORS registers."""
    b = e.b
    pair = 1 if form == "float" else 2
    q_row = e.times(dims, weight_bytes(form))
    exponent = e.times(e.at(dims, 16), 4)
    scores = []
    for r in range(rows):
        start = e.splat(b.fneg(e.load(e.at(states[r], exponent), F32)))
        scores.append([e.variable(start) for _ in range(VECTORS)])
    for group in range(0, VECTORS, TOGETHER):
        with e.loop(b.udiv(dims, I64(pair))) as loop:
            offset = e.at(e.times(loop.index, 4 * TILE), 64 * group)
            words = [
                e.load(e.at(keys, offset, 64 * c), V16I, 64) for c in range(TOGETHER)
            ]
            key = [_parts(e, form, word) for word in words]
            if rows <= 3:
                e.prefetch(e.at(next_keys, offset), 64 * TOGETHER)
            for r in range(rows):
                place = e.at(
                    q, e.times(q_row, r), e.times(loop.index, pair * weight_bytes(form))
                )
                query = _factors(e, form, place)
                for c in range(TOGETHER):
                    _add_products(e, form, scores[r][group + c], key[c], query)
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
    form: Form,
    dims: ir.Value,
    p: ir.Value,
    values: ir.Value,
    states: list[ir.Value],
    next_values: ir.Value,
) -> None:
    """output += p v, for as many dimensions at a time as the registers hold, then 16 at a time."""
    b = e.b
    pair = 1 if form == "float" else 2
    step = pair * weight_bytes(form)

    def columns(start: ir.Value, vectors: int) -> None:
        places = [[e.at(s, start, 64 * c) for c in range(vectors)] for s in states]
        out = [[e.variable(e.load(place, align=64)) for place in row] for row in places]
        with e.loop(TILE // pair) as loop:
            offset = e.at(e.times(e.times(loop.index, 4), dims), start)
            words = [
                e.load(e.at(values, offset, 64 * c), V16I, 64) for c in range(vectors)
            ]
            value = [_parts(e, form, word) for word in words]
            if len(states) <= 3:
                e.prefetch(e.at(next_values, offset), 64 * vectors)
            for r, row in enumerate(out):
                place = e.at(
                    p, e.times(loop.index, step), r * TILE * weight_bytes(form)
                )
                weight = _factors(e, form, place)
                for c in range(vectors):
                    _add_products(e, form, row[c], value[c], weight)
        for row, row_places in zip(out, places, strict=True):
            for total, place in zip(row, row_places, strict=True):
                e.store(b.load(total), place, align=64)

    size = 64 * TOGETHER
    wide = b.udiv(e.times(dims, 4), I64(size))
    with e.loop(wide) as loop:
        columns(e.times(loop.index, size), TOGETHER)
    done = e.times(wide, size)
    with e.loop(b.udiv(b.sub(e.times(dims, 4), done), I64(64))) as loop:
        columns(e.at(done, e.times(loop.index, 64)), 1)
