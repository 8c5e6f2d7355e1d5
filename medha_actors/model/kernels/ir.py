"""A small vocabulary of vector operations in LLVM IR, from which the CPU kernels are written as
numba intrinsics.

Every kernel takes 64-bit integers only: addresses, counts and strides in bytes. Vectors have 16
float32 lanes: one AVX-512 register, or two of AVX2, into which LLVM splits them; the kernels then
work on fewer rows at a time (WIDE). bfloat16 is rounded and multiplied by the machine's
instructions where it has them and by plain arithmetic elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import cfunc, njit, types
from numba.core import cgutils, config
from numba.extending import intrinsic

from medha_actors.files.folders import cache_folder

LANES = 16
FEATURES = {
    name for name, present in binding.get_host_cpu_features().items() if present
}
WIDE = "avx512f" in FEATURES  # 32 registers of 16 lanes; else 16 of 8
HAS_BF16 = {"avx512f", "avx512bf16"} <= FEATURES
HAS_VNNI = {"avx512f", "avx512bw", "avx512vnni"} <= FEATURES
PROCESSOR = binding.get_host_cpu_name()
# Intel's take twice the time for as many products as with fma
QUICK_BF16 = HAS_BF16 and PROCESSOR.startswith("znver")


class _BFloat(ir.types.Type):
    """LLVM's `bfloat`, which llvmlite does not name."""

    intrinsic_name = "bf16"

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


F32 = ir.FloatType()
F16 = ir.HalfType()
BF16 = _BFloat()
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
V16F, V16I, V16H, V16B, V16C = (
    ir.VectorType(kind, LANES) for kind in (F32, I32, F16, BF16, I8)
)
V64C = ir.VectorType(I8, 64)
_V32B = ir.VectorType(BF16, 32)


class Emit:
    """Appends vector instructions to an IR builder; every method returns the new value."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.b = builder

    def call(self, name: str, kind: ir.Type, *args: ir.Value) -> ir.Value:
        signature = ir.FunctionType(kind, [value.type for value in args])
        return self.b.call(
            cgutils.get_or_insert_function(self.b.module, signature, name), args
        )

    def at(self, address: ir.Value, *offsets: ir.Value | int) -> ir.Value:
        """address + all offsets (bytes)."""
        for offset in offsets:
            address = self.b.add(
                address, I64(offset) if isinstance(offset, int) else offset
            )
        return address

    def times(self, value: ir.Value, factor: ir.Value | int) -> ir.Value:
        return self.b.mul(value, I64(factor) if isinstance(factor, int) else factor)

    def load(self, address: ir.Value, kind: ir.Type = V16F, align: int = 1) -> ir.Value:
        return self.b.load(self.b.inttoptr(address, kind.as_pointer()), align=align)

    def store(self, value: ir.Value, address: ir.Value, align: int = 1) -> None:
        self.b.store(
            value, self.b.inttoptr(address, value.type.as_pointer()), align=align
        )

    def constant(self, value: float, kind: ir.VectorType = V16F) -> ir.Value:
        return ir.Constant(kind, [value] * kind.count)

    def splat(self, scalar: ir.Value, lanes: int = LANES) -> ir.Value:
        kind = ir.VectorType(scalar.type, lanes)
        none = ir.Constant(kind, ir.Undefined)
        one = self.b.insert_element(none, scalar, I32(0))
        return self.b.shuffle_vector(
            one, none, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
        )

    def broadcast(self, address: ir.Value, kind: ir.Type = F32) -> ir.Value:
        return self.splat(self.load(address, kind))

    def fma(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        return self.call(f"llvm.fma.v{x.type.count}f32", x.type, x, y, z)

    def maximum(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """Lane by lane, in one instruction; y where either is no number."""
        return self.b.select(self.b.fcmp_ordered(">", x, y), x, y)

    def largest(self, x: ir.Value) -> ir.Value:
        return self.call("llvm.vector.reduce.fmax.v16f32", F32, x)

    def prefetch(self, start: ir.Value, size: int) -> None:
        """Ask for `size` bytes to be brought into the second-level cache."""
        for line in range(0, size, 64):
            pointer = self.b.inttoptr(self.at(start, line), I8.as_pointer())
            self.call(
                "llvm.prefetch.p0", ir.VoidType(), pointer, I32(0), I32(2), I32(1)
            )

    def loop(self, count: ir.Value | int) -> AbstractContextManager[Any]:
        """`with e.loop(n) as loop:` runs its body for loop.index = 0 ... n-1."""
        return cgutils.for_range(
            self.b, I64(count) if isinstance(count, int) else count
        )

    def variable(self, value: ir.Value) -> ir.Value:
        return cgutils.alloca_once_value(self.b, value)

    def bfloat(self, x: ir.Value, native: bool = HAS_BF16) -> ir.Value:
        """Round float32 lanes to bfloat16, half to even (but for NaNs)."""
        lanes = x.type.count
        if native:
            return self.b.fptrunc(x, ir.VectorType(BF16, lanes))
        kind = ir.VectorType(I32, lanes)
        bits = self.b.bitcast(x, kind)
        sixteen = self.constant(16, kind)
        odd = self.b.and_(self.b.lshr(bits, sixteen), self.constant(1, kind))
        rounded = self.b.add(bits, self.b.add(odd, self.constant(0x7FFF, kind)))
        upper = self.b.trunc(self.b.lshr(rounded, sixteen), ir.VectorType(I16, lanes))
        return self.b.bitcast(upper, ir.VectorType(BF16, lanes))

    def dot_bf16(
        self, acc: ir.Value, x: ir.Value, y: ir.Value, native: bool = HAS_BF16
    ) -> ir.Value:
        """acc[i] + the dot product of the two bfloat16 values in each 32-bit lane of x and y."""
        if native:
            pairs = self.b.bitcast(x, _V32B), self.b.bitcast(y, _V32B)
            return self.call("llvm.x86.avx512bf16.dpbf16ps.512", V16F, acc, *pairs)
        shift = self.constant(16, V16I)
        high = self.constant(0xFFFF0000, V16I)
        upper_x, upper_y = [self.b.bitcast(self.b.and_(v, high), V16F) for v in (x, y)]
        lower_x, lower_y = [self.b.bitcast(self.b.shl(v, shift), V16F) for v in (x, y)]
        return self.fma(lower_x, lower_y, self.fma(upper_x, upper_y, acc))

    def dot_int16(
        self, acc: ir.Value, x: ir.Value, y: ir.Value, native: bool = HAS_VNNI
    ) -> ir.Value:
        """acc[i] + the dot product of the two int16 in each 32-bit lane of x and y, where it fits
        into 32 bits."""
        if native:
            # not vpdpwssd, which LLVM replaces by two instructions to shorten chains of sums
            return self.call("llvm.x86.avx512.vpdpwssds.512", V16I, acc, x, y)
        sixteen = self.constant(16, V16I)
        for lift in (True, False):
            parts = [self.b.shl(v, sixteen) if lift else v for v in (x, y)]
            low, other = [self.b.ashr(part, sixteen) for part in parts]
            acc = self.b.add(acc, self.b.mul(low, other))
        return acc

    def exp2(self, x: ir.Value, degree: int = 5) -> ir.Value:
        """2**x for x <= 127; degree 5 errs by 2e-7 relative, 4 by 4e-6. Below -126 it returns
        2**-126."""
        magic = self.constant(1.5 * 2**23)
        x = self.maximum(x, self.constant(-126.0))
        # the integer part of x now stands in the lowest bits
        shifted = self.b.fadd(x, magic)
        fraction = self.b.fsub(x, self.b.fsub(shifted, magic))
        value = self.constant(_EXP2[degree][degree])
        for coefficient in reversed(_EXP2[degree][:degree]):
            value = self.fma(value, fraction, self.constant(coefficient))
        exponent = self.b.shl(self.b.bitcast(shifted, V16I), self.constant(23, V16I))
        return self.b.bitcast(self.b.add(self.b.bitcast(value, V16I), exponent), V16F)


def _exp2_coefficients(degree: int) -> list[float]:
    """Chebyshev fit of 2**x on [-0.5, 0.5]."""
    nodes = np.cos(np.pi * (np.arange(400) + 0.5) / 400) / 2
    fit = np.polynomial.chebyshev.Chebyshev.fit(
        nodes, np.exp2(nodes), degree, domain=[-0.5, 0.5]
    )
    return [float(c) for c in fit.convert(kind=np.polynomial.Polynomial).coef]


_EXP2 = {degree: _exp2_coefficients(degree) for degree in (4, 5, 6)}


def kernel(arity: int, emit: Callable[..., None]) -> Any:
    """A numba intrinsic of `arity` integers that runs emit(Emit, *values)."""

    def typed(*_: Any) -> tuple[Any, Callable[..., Any]]:
        def codegen(
            context: Any, builder: ir.IRBuilder, signature: Any, values: list[ir.Value]
        ) -> ir.Value:
            emit(Emit(builder), *values)
            return context.get_dummy_value()

        return types.void(*[types.int64] * arity), codegen

    # numba reads the number of parameters off the function, so it has to be spelled out
    names = ", ".join(f"a{i}" for i in range(arity))
    scope: dict[str, Any] = {"typed": typed}
    exec(f"def {emit.__name__}(context, {names}):\n    return typed()", scope)
    return intrinsic(scope[emit.__name__])


def call_address(e: Emit, code: ir.Value, *values: ir.Value) -> None:
    """Call what machine_code() returned. It is compiled once and on its own, where numba would
    compile a plain callee again inside each of its callers."""
    signature = ir.FunctionType(ir.VoidType(), [I64] * len(values))
    e.b.call(e.b.inttoptr(code, signature.as_pointer()), values)


@intrinsic
def address(context: Any, array: Any) -> Any:
    """The address of an array's first element, as an int64."""

    def codegen(
        context: Any, builder: ir.IRBuilder, signature: Any, values: list[ir.Value]
    ) -> ir.Value:
        view = context.make_array(signature.args[0])(context, builder, values[0])
        return builder.ptrtoint(view.data, I64)

    return types.int64(array), codegen


def compiled(function: Callable[..., None]) -> Any:
    """Compile on first call, without the GIL, and keep the machine code on disk for the next
    process."""
    with _cached():
        return njit(nogil=True, cache=True, error_model="numpy")(function)


def with_kernel(
    code: Callable[..., None], kernel: Any, name: str
) -> Callable[..., None]:
    """The same function around a `_kernel` of its own. numba's cache on disk tells functions apart
    by their names."""
    made = FunctionType(code.__code__, {**code.__globals__, "_kernel": kernel})
    made.__qualname__ = name
    return made


def machine_code(function: Callable[..., None], arity: int) -> int:
    """Compile a function of integers (or find it on disk); returns its address, for
    call_address."""
    with _cached():
        signature = types.void(*[types.int64] * arity)
        place = cfunc(signature, cache=True)(function).address
        assert place is not None, "it is compiled"
        return place


@contextmanager
def _cached() -> Iterator[None]:
    """Let numba's cache live in a folder of its own for each state of these files.

    numba itself notices a change only in the file of the function, not in the emitters it is made
    of.
    """
    before = config.CACHE_DIR
    config.CACHE_DIR = before or str(_cache_folder())
    try:
        yield
    finally:
        config.CACHE_DIR = before


@cache
def fingerprint() -> str:
    """Of these files and of this processor: where it is another, the same layers are other code and
    take other times."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    state = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    state.update(" ".join([PROCESSOR, *sorted(FEATURES)]).encode())
    return state.hexdigest()[:16]


def _cache_folder() -> Path:
    return cache_folder() / f"kernels-{fingerprint()}"
