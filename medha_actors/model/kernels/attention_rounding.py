"""Queries, keys and values as 16-bit integers: how they are rounded, and where they lie.

A key and a value are whole numbers of steps, of which each token has its own: the power of two with
which the largest magnitude takes 15 bits. bfloat16 has 8, so all within 2**7 of the largest are
rounded no more than there; the pool takes no more room. A tile of 64 tokens of one head is
  keys    [head_dim / 2][64 tokens] words, each a pair of neighbouring dimensions
  values  [32][head_dim] words, each the same dimension of two tokens 16 apart (t and t + 16, t in
          0 ... 15 and 32 ... 47), so weights pair up without crossing lanes
and the exponents of both steps, a byte each, stand in the lowest bits of a key's first 16 numbers:
those of the first four words make the key's, those of the next four the value's. Products take them
along as what they are, at most a step more or less.

A query lies in the room of its float32 [head_dim]: int16 [head_dim], and behind them its step, a
float32. The magnitudes of all of them add up to at most LARGEST_SUM.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from medha_actors.model.kernels.ir import (
    F32,
    I16,
    I32,
    I64,
    V16F,
    V16I,
    Emit,
    kernel,
)

LARGEST_SUM = 2**16  # times the largest key or value: less than 2**31
_LARGEST = 2**15 - 2
_BITS = 14  # that the largest magnitude has behind its first one
_MAGIC = 1.5 * 2**23  # float32 from here on have a whole number in their lowest bits
_NOT_FINITE = 255  # exponent
_MARKED = 0x00010001  # lowest bits of a word's numbers
_V8F = ir.VectorType(F32, 8)
_V8I = ir.VectorType(I32, 8)
_V8S = ir.VectorType(I16, 8)
_V16S = ir.VectorType(I16, 16)
_V4I = ir.VectorType(I32, 4)


def pair_words(e: Emit, low: ir.Value, high: ir.Value, factor: ir.Value) -> ir.Value:
    """Words of low * factor and high * factor, rounded to int16."""
    b = e.b
    lower = b.bitcast(e.fma(low, factor, e.constant(_MAGIC)), V16I)
    # an upper half is computed where it stands: half of it is added, and what is below is cut off
    lifted = b.fmul(factor, e.constant(2.0**16))
    upper = b.fptosi(e.fma(high, lifted, e.constant(2.0**15)), V16I)
    return b.or_(
        b.and_(lower, e.constant(0xFFFF, V16I)),
        b.and_(upper, e.constant(0xFFFF0000, V16I)),
    )


def steps_of(e: Emit, keys: ir.Value) -> list[ir.Value]:
    """Of 16 tokens whose keys' first words are at `keys`, 256 bytes from one to the next: the steps
    of their keys and of their values."""
    b = e.b
    steps = []
    for first in (0, 4):
        bits = e.constant(0, V16I)
        for number in range(4):
            word = e.load(e.at(keys, 256 * (first + number)), V16I, 64)
            marked = b.and_(word, e.constant(_MARKED, V16I))
            bits = b.or_(bits, b.shl(marked, e.constant(number, V16I)))
        # the upper half's four bits belong above the lower half's
        together = b.or_(bits, b.lshr(bits, e.constant(12, V16I)))
        steps.append(b.bitcast(b.shl(together, e.constant(23, V16I)), V16F))
    return steps


def _put_query(
    e: Emit, x: ir.Value, dims: ir.Value, factor: ir.Value, out: ir.Value
) -> None:
    """out = x * factor, rounded; factor is the address of a float32."""
    b = e.b
    scale = e.broadcast(factor)
    total = e.variable(e.constant(0.0))
    largest = e.variable(e.constant(2.0**-100))
    vectors = b.udiv(dims, I64(16))
    with e.loop(vectors) as loop:
        value = b.fmul(e.load(e.at(x, e.times(loop.index, 64))), scale)
        size = e.call("llvm.fabs.v16f32", V16F, value)
        b.store(b.fadd(b.load(total), size), total)
        b.store(e.maximum(b.load(largest), size), largest)
    added = _over_lanes(e, b.load(total), b.fadd)
    top = _over_lanes(e, b.load(largest), e.maximum)
    # rounding adds at most a half each
    by_sum = b.fdiv(added, b.uitofp(b.sub(I64(LARGEST_SUM), dims), F32))
    by_largest = b.fmul(top, F32(1 / _LARGEST))
    # where there is no number, the step is none
    step = b.select(b.fcmp_ordered("<=", by_sum, by_largest), by_largest, by_sum)
    inverse = b.fmul(e.splat(b.fdiv(F32(1), step)), scale)
    with e.loop(vectors) as loop:
        value = e.load(e.at(x, e.times(loop.index, 64)))
        whole = b.bitcast(e.fma(value, inverse, e.constant(_MAGIC)), V16I)
        e.store(b.trunc(whole, _V16S), e.at(out, e.times(loop.index, 32)))
    e.store(step, e.at(out, e.times(dims, 2)))


def _over_lanes(
    e: Emit, x: ir.Value, join: Callable[[ir.Value, ir.Value], ir.Value]
) -> ir.Value:
    """All 16 lanes joined to one, in a tree: the compiler may not reorder float sums by itself."""
    for distance in (8, 4, 2, 1):
        order = ir.Constant(V16I, [lane ^ distance for lane in range(16)])
        x = join(x, e.b.shuffle_vector(x, x, order))
    return e.b.extract_element(x, I32(0))


def _exponent(e: Emit, x: ir.Value, dims: ir.Value) -> ir.Value:
    """Of the step of a key or a value, float32 [head_dim]: int32, as float32 have it."""
    b = e.b
    largest = e.variable(e.constant(0, V16I))
    with e.loop(b.udiv(dims, I64(16))) as loop:
        value = e.load(e.at(x, e.times(loop.index, 64)), V16I)
        # without their signs floats are ordered as integers are; NaN is the largest
        size = b.and_(value, e.constant(0x7FFFFFFF, V16I))
        b.store(e.call("llvm.umax.v16i32", V16I, b.load(largest), size), largest)
    top = e.call("llvm.vector.reduce.umax.v16i32", I32, b.load(largest))
    # what would be rounded up to 2**15 steps takes the next exponent
    grown = b.bitcast(b.fmul(b.bitcast(top, F32), F32(1 + 2.0**-13)), I32)
    exponent = b.lshr(b.and_(grown, I32(0x7F800000)), I32(23))
    lower = b.sub(exponent, I32(_BITS))
    small = b.icmp_signed("<", lower, I32(1))
    finite = b.icmp_signed("<", exponent, I32(_NOT_FINITE))
    return b.select(finite, b.select(small, I32(1), lower), I32(_NOT_FINITE))


def _inverse(e: Emit, exponent: ir.Value) -> ir.Value:
    """1 / step for 8 lanes."""
    b = e.b
    bits = b.shl(b.sub(I32(254), exponent), I32(23))
    return e.splat(b.bitcast(bits, F32), 8)


def _rounded(e: Emit, x: ir.Value, inverse: ir.Value) -> ir.Value:
    """8 values as whole numbers of steps, int16."""
    value = e.fma(e.load(x, _V8F), inverse, e.constant(_MAGIC, _V8F))
    return e.b.trunc(e.b.bitcast(value, _V8I), _V8S)


def _marks(e: Emit, exponent: ir.Value) -> ir.Value:
    """The lowest bits of four words: its four lower bits in lower halves, the others above."""
    b = e.b
    every = e.splat(exponent, 4)
    one = e.constant(1, _V4I)
    low, high = [
        b.and_(b.lshr(every, ir.Constant(_V4I, list(range(start, start + 4)))), one)
        for start in (0, 4)
    ]
    return b.or_(low, b.shl(high, e.constant(16, _V4I)))


def _put_key_and_value(
    e: Emit,
    key: ir.Value,
    value: ir.Value,
    dims: ir.Value,
    keys: ir.Value,
    values: ir.Value,
) -> None:
    """One token of a head; `keys`: its first word in its tile; `values`: its first number."""
    b = e.b
    exponents = [_exponent(e, x, dims) for x in (key, value)]
    inverses = [_inverse(e, exponent) for exponent in exponents]

    def put(number: ir.Value, exponent: ir.Value | None) -> None:
        """Eight numbers of each."""
        skip = e.times(number, 32)
        words = b.bitcast(_rounded(e, e.at(key, skip), inverses[0]), _V4I)
        if exponent is not None:
            kept = b.and_(words, e.constant(~_MARKED & 0xFFFFFFFF, _V4I))
            words = b.or_(kept, _marks(e, exponent))
        for i in range(4):
            place = e.at(keys, e.times(e.at(e.times(number, 4), i), 256))
            e.store(b.extract_element(words, I32(i)), place)
        numbers = _rounded(e, e.at(value, skip), inverses[1])
        for i in range(8):
            place = e.at(values, e.times(e.at(e.times(number, 8), i), 4))
            e.store(b.extract_element(numbers, I32(i)), place)

    for number, exponent in enumerate(exponents):
        put(I64(number), exponent)
    with e.loop(b.sub(b.udiv(dims, I64(8)), I64(2))) as loop:
        put(e.at(loop.index, 2), None)


put_query = kernel(4, _put_query)
put_key_and_value = kernel(5, _put_key_and_value)
