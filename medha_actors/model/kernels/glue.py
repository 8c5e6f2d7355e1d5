"""What stands between the matrix products of a layer: RMSNorm, RoPE, SiLU, rounding of activations,
writing of KV.

All functions work on float32 rows by address. Rows must be multiples of 16 values (32 where they
become int8).
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from medha_actors.model.kernels.ir import (
    F32,
    I16,
    I32,
    I64,
    V16C,
    V16F,
    V16I,
    Emit,
    kernel,
)
from medha_actors.model.kernels.layouts import BLOCK, SCALES_BYTES

_V8F = ir.VectorType(F32, 8)
_V8S = ir.VectorType(I16, 8)
_V4I = ir.VectorType(I32, 4)
_LOG2_E = 1.4426950408889634


def _norm(
    e: Emit, x: ir.Value, gain: ir.Value, count: ir.Value, eps: ir.Value, out: ir.Value
) -> None:
    """out = x / sqrt(mean(x**2) + eps) * gain for `count` values; eps is the address of a
    float32."""
    b = e.b
    total = e.variable(e.constant(0.0))
    vectors = b.udiv(count, I64(16))
    with e.loop(vectors) as loop:
        value = e.load(e.at(x, e.times(loop.index, 64)))
        b.store(e.fma(value, value, b.load(total)), total)
    square = e.call("llvm.vector.reduce.fadd.v16f32", F32, F32(0), b.load(total))
    mean = b.fdiv(square, b.uitofp(count, F32))
    root = e.call("llvm.sqrt.f32", F32, b.fadd(mean, e.load(eps, F32)))
    factor = e.splat(b.fdiv(F32(1), root))
    with e.loop(vectors) as loop:
        offset = e.times(loop.index, 64)
        scaled = b.fmul(e.load(e.at(x, offset)), factor)
        e.store(b.fmul(scaled, e.load(e.at(gain, offset))), e.at(out, offset))


def _silu_mul(
    e: Emit, gate: ir.Value, up: ir.Value, count: ir.Value, out: ir.Value
) -> None:
    """out = gate / (1 + exp(-gate)) * up"""
    b = e.b
    with e.loop(b.udiv(count, I64(16))) as loop:
        offset = e.times(loop.index, 64)
        value = e.load(e.at(gate, offset))
        power = b.fmul(value, e.constant(-_LOG2_E))
        power = e.call("llvm.minnum.v16f32", V16F, power, e.constant(126.0))
        sigmoid = b.fadd(e.exp2(power), e.constant(1.0))
        e.store(
            b.fmul(b.fdiv(value, sigmoid), e.load(e.at(up, offset))), e.at(out, offset)
        )


def _to_bytes(parts: int) -> Callable[..., None]:
    def emit(
        e: Emit,
        x: ir.Value,
        blocks: ir.Value,
        rows: ir.Value,
        out: ir.Value,
        scales: ir.Value,
    ) -> None:
        """Round blocks of 32 to signed integers of one byte or two, of one of so many rows: out
        [blocks, rows, parts, 32], a block's high bytes and then its low ones, both signed; scales
        [blocks, rows, 4] gets each block's step and the sums of its rounded values, of their first
        half and of their second half."""
        b = e.b
        steps = 127 * 256 ** (parts - 1)
        with e.loop(blocks) as loop:
            number = e.times(loop.index, rows)
            scale = e.at(scales, e.times(number, SCALES_BYTES))
            halves = _round_block(e, x, loop.index, scale, steps)
            for half, whole in enumerate(halves):
                place = e.at(out, e.times(number, parts * BLOCK), 16 * half)
                if parts == 2:
                    rounded = b.add(whole, e.constant(128, V16I))
                    high = b.ashr(rounded, e.constant(8, V16I))
                    e.store(b.trunc(high, V16C), place)
                    place = e.at(place, BLOCK)
                # of two bytes, whole - 256 high is the low one
                e.store(b.trunc(whole, V16C), place)

    return emit


def _round_block(
    e: Emit,
    x: ir.Value,
    number: ir.Value,
    scales: ir.Value,
    steps: int,
) -> list[ir.Value]:
    """The 32 values of a block in steps of 1/steps of the largest one; writes the step and the
    sums."""
    b = e.b
    place = e.at(x, e.times(number, 128))
    values = [e.load(place), e.load(e.at(place, 64))]
    top = _largest_magnitude(e, values)
    step = b.fmul(top, F32(1 / steps))
    inverse = e.splat(
        b.select(b.fcmp_ordered(">", top, F32(1e-30)), b.fdiv(F32(steps), top), F32(0))
    )
    whole = [
        b.fptosi(e.call("llvm.rint.v16f32", V16F, b.fmul(value, inverse)), V16I)
        for value in values
    ]
    halves = _two_sums(e, *whole)
    e.store(step, scales)
    for which, total in enumerate((b.add(*halves), *halves), 1):
        e.store(b.fmul(b.sitofp(total, F32), step), e.at(scales, 4 * which))
    return whole


def _largest_magnitude(e: Emit, values: list[ir.Value]) -> ir.Value:
    """Of 32 values. Without their signs floats are ordered as integers are, which takes a third of
    the instructions; NaN is the largest."""
    b = e.b
    mask = e.constant(0x7FFFFFFF, V16I)
    bits = [b.and_(b.bitcast(value, V16I), mask) for value in values]
    largest = e.call("llvm.umax.v16i32", V16I, *bits)
    top = e.call("llvm.vector.reduce.umax.v16i32", I32, largest)
    return b.bitcast(top, F32)


def _two_sums(e: Emit, x: ir.Value, y: ir.Value) -> list[ir.Value]:
    """The sums of 16 integers each, formed side by side: x's in the lower half of a register."""
    b = e.b

    def picked(lanes: list[int], *of: ir.Value) -> ir.Value:
        order = ir.Constant(ir.VectorType(I32, 16), lanes)
        return b.shuffle_vector(of[0], of[-1], order)

    lower = picked([*range(8), *range(16, 24)], x, y)
    upper = picked([*range(8, 16), *range(24, 32)], x, y)
    both = b.add(lower, upper)
    for distance in (4, 2, 1):
        both = b.add(both, picked([lane ^ distance for lane in range(16)], both))
    return [b.extract_element(both, I32(lane)) for lane in (0, 8)]


def _block_sums(
    e: Emit, x: ir.Value, blocks: ir.Value, rows: ir.Value, sums: ir.Value
) -> None:
    """The sums of blocks of 32 values of one of so many rows: sums [blocks, rows, 4], the first."""
    with e.loop(blocks) as loop:
        place = e.at(x, e.times(loop.index, 128))
        both = e.b.fadd(e.load(place), e.load(e.at(place, 64)))
        total = F32(0)
        # a fixed tree: the compiler may not reorder float sums by itself
        for lane in range(8):
            pair = [e.b.extract_element(both, I32(2 * lane + i)) for i in range(2)]
            total = e.b.fadd(total, e.b.fadd(*pair))
        e.store(total, e.at(sums, e.times(e.times(loop.index, rows), SCALES_BYTES)))


def _to_bfloat(
    e: Emit, x: ir.Value, count: ir.Value, factor: ir.Value, out: ir.Value
) -> None:
    """out = bfloat16(x * factor); factor is the address of a float32."""
    scale = e.broadcast(factor)
    with e.loop(e.b.udiv(count, I64(16))) as loop:
        value = e.b.fmul(e.load(e.at(x, e.times(loop.index, 64))), scale)
        e.store(e.bfloat(value), e.at(out, e.times(loop.index, 32)))


def _scaled(
    e: Emit, x: ir.Value, count: ir.Value, factor: ir.Value, out: ir.Value
) -> None:
    """out = x * factor"""
    scale = e.broadcast(factor)
    with e.loop(e.b.udiv(count, I64(16))) as loop:
        offset = e.times(loop.index, 64)
        e.store(e.b.fmul(e.load(e.at(x, offset)), scale), e.at(out, offset))


def _clear(e: Emit, x: ir.Value, count: ir.Value) -> None:
    """x = 0."""
    with e.loop(e.b.udiv(count, I64(16))) as loop:
        e.store(e.constant(0.0), e.at(x, e.times(loop.index, 64)))


def _plus(e: Emit, x: ir.Value, y: ir.Value, count: ir.Value) -> None:
    """x += y"""
    with e.loop(e.b.udiv(count, I64(16))) as loop:
        offset = e.times(loop.index, 64)
        e.store(
            e.b.fadd(e.load(e.at(x, offset)), e.load(e.at(y, offset))), e.at(x, offset)
        )


def _plus_scaled(
    e: Emit, x: ir.Value, y: ir.Value, count: ir.Value, factor: ir.Value
) -> None:
    """x += y * factor; factor is the address of a float32."""
    scale = e.broadcast(factor)
    with e.loop(e.b.udiv(count, I64(16))) as loop:
        offset = e.times(loop.index, 64)
        place = e.at(x, offset)
        e.store(e.fma(e.load(e.at(y, offset)), scale, e.load(place)), place)


def _rotate(e: Emit, x: ir.Value, cos: ir.Value, sin: ir.Value, half: ir.Value) -> None:
    """RoPE in place on one head: pairs are (i, i + half)."""
    b = e.b
    with e.loop(b.udiv(half, I64(8))) as loop:
        offset = e.times(loop.index, 32)
        left = e.at(x, offset)
        right = e.at(x, offset, e.times(half, 4))
        a = e.load(left, _V8F)
        z = e.load(right, _V8F)
        c = e.load(e.at(cos, offset), _V8F)
        s = e.load(e.at(sin, offset), _V8F)
        e.store(b.fsub(b.fmul(a, c), b.fmul(z, s)), left)
        e.store(b.fadd(b.fmul(z, c), b.fmul(a, s)), right)


def _put_key(
    e: Emit,
    x: ir.Value,
    dims: ir.Value,
    stride: ir.Value,
    bfloat: ir.Value,
    out: ir.Value,
) -> None:
    """A head's key into a column of its tile: lane words `stride` bytes apart (a bfloat16 pair or
    one float32)."""
    b = e.b
    with e.loop(b.udiv(dims, I64(8))) as loop:
        value = e.load(e.at(x, e.times(loop.index, 32)), _V8F)
        with b.if_else(b.icmp_signed("!=", bfloat, I64(0))) as (yes, no):
            with yes:
                words = b.bitcast(e.bfloat(value), _V4I)
                count = 4
                for i in range(count):
                    place = e.at(
                        out, e.times(e.at(e.times(loop.index, count), i), stride)
                    )
                    e.store(b.extract_element(words, I32(i)), place)
            with no:
                for i in range(8):
                    place = e.at(out, e.times(e.at(e.times(loop.index, 8), i), stride))
                    e.store(b.extract_element(value, I32(i)), place)


def _put_value(
    e: Emit, x: ir.Value, dims: ir.Value, bfloat: ir.Value, out: ir.Value
) -> None:
    """A head's value: bfloat16 values 4 bytes apart (the neighbour token fills the gaps) or float32
    side by side."""
    b = e.b
    with e.loop(b.udiv(dims, I64(8))) as loop:
        place = e.at(out, e.times(loop.index, 32))
        value = e.load(e.at(x, e.times(loop.index, 32)), _V8F)
        with b.if_else(b.icmp_signed("!=", bfloat, I64(0))) as (yes, no):
            with yes:
                rounded = b.bitcast(e.bfloat(value), _V8S)
                for i in range(8):
                    e.store(b.extract_element(rounded, I32(i)), e.at(place, 4 * i))
            with no:
                e.store(value, place)


norm = kernel(5, _norm)
silu_mul = kernel(4, _silu_mul)
to_int8 = kernel(5, _to_bytes(1))
to_int16 = kernel(5, _to_bytes(2))
block_sums = kernel(4, _block_sums)
to_bfloat = kernel(4, _to_bfloat)
scaled = kernel(4, _scaled)
clear = kernel(2, _clear)
plus = kernel(3, _plus)
plus_scaled = kernel(4, _plus_scaled)
rotate = kernel(4, _rotate)
put_key = kernel(5, _put_key)
put_value = kernel(4, _put_value)
