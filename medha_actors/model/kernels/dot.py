"""Dot products of bytes: 16 sums of unsigned weights times signed activations, in the instructions
a machine has.

form     machine                a step adds, in each 32-bit lane
VNNI     AVX-512 with VNNI      4 products to an int32 (vpdpbusd)
PAIRS    AVX2                   2 products to each of two int16 (vpmaddubsw), which hold the 32
                                inputs of a block:
                                8 * 2 * 15 * 128 < 2**15. Weights of 8 bits are two halves of 4 with
                                sums of their own
PLAIN    any                    4 products to an int32, one by one
All are exact, so they agree to the last bit.
"""

from __future__ import annotations

from typing import Literal

from llvmlite import ir

from medha_actors.model.kernels.ir import FEATURES, I16, I32, V16I, V64C, Emit

Form = Literal["vnni", "pairs", "plain"]
FORM: Form = (
    "vnni"
    if {"avx512f", "avx512vnni"} <= FEATURES
    else "pairs"
    if {"avx2", "fma", "f16c"} <= FEATURES
    else "plain"
)
Sums = list[ir.Value]
_V16S = ir.VectorType(I16, 16)
_V32S = ir.VectorType(I16, 32)


class ByteDot:
    """The sums of one block of 32 inputs, for weights of 4 or 8 bits."""

    def __init__(self, e: Emit, bits: int, form: Form = FORM) -> None:
        self.e = e
        self.bits = bits
        self.form = form

    def zero(self) -> Sums:
        if self.form == "pairs":
            return [self.e.constant(0, _V32S)] * (self.bits // 4)
        return [self.e.constant(0, V16I)]

    def prepare(self, weights: ir.Value) -> Sums:
        """What `add` wants of V16I weights (a byte each, below 2**bits), the same for all rows."""
        if self.form != "pairs" or self.bits == 4:
            return [weights]
        low = self.e.constant(0x0F0F0F0F, V16I)
        return [
            self.e.b.and_(part, low)
            for part in (weights, self.e.b.lshr(weights, self.e.constant(4, V16I)))
        ]

    def add(self, sums: Sums, weights: Sums, values: ir.Value) -> Sums:
        """Add four products per lane; values is V16I with a signed byte each."""
        if self.form == "vnni":
            return [
                self.e.call(
                    "llvm.x86.avx512.vpdpbusd.512", V16I, sums[0], weights[0], values
                )
            ]
        if self.form == "pairs":
            return [
                self.e.b.add(s, self._pairs(w, values))
                for s, w in zip(sums, weights, strict=True)
            ]
        return [self._plain(sums[0], weights[0], values)]

    def total(self, sums: Sums) -> ir.Value:
        """The sums as V16I."""
        if self.form != "pairs":
            return sums[0]
        b = self.e.b
        ones = self.e.constant(1, _V16S)
        whole = [
            self._joined(
                [
                    self.e.call(
                        "llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, 8), h, ones
                    )
                    for h in self._halves(s)
                ]
            )
            for s in sums
        ]
        return (
            whole[0]
            if self.bits == 4
            else b.add(whole[0], b.shl(whole[1], self.e.constant(4, V16I)))
        )

    def _pairs(self, weights: ir.Value, values: ir.Value) -> ir.Value:
        halves = [self._halves(self.e.b.bitcast(v, V64C)) for v in (weights, values)]
        return self._joined(
            [
                self.e.call("llvm.x86.avx2.pmadd.ub.sw", _V16S, w, v)
                for w, v in zip(*halves, strict=True)
            ]
        )

    def _halves(self, x: ir.Value) -> list[ir.Value]:
        size = x.type.count // 2
        return [self._pick(x, x, range(start, start + size)) for start in (0, size)]

    def _joined(self, halves: list[ir.Value]) -> ir.Value:
        low, high = halves
        return self._pick(low, high, range(2 * low.type.count))

    def _pick(self, x: ir.Value, y: ir.Value, lanes: range) -> ir.Value:
        return self.e.b.shuffle_vector(
            x, y, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))
        )

    def _plain(self, total: ir.Value, weights: ir.Value, values: ir.Value) -> ir.Value:
        e = self.e
        b = self.e.b
        byte = e.constant(255, V16I)
        top = e.constant(24, V16I)
        for j in range(4):
            weight = b.and_(b.lshr(weights, e.constant(8 * j, V16I)), byte)
            value = b.ashr(b.shl(values, e.constant(24 - 8 * j, V16I)), top)
            total = b.add(total, b.mul(weight, value))
        return total
