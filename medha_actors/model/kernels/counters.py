"""Counters in memory that processes or threads share: a writer raises one after it has filled a
buffer, a reader waits for it."""

# ruff: noqa: ANN001, ANN201, ANN202  (compiled functions take integers and arrays)
from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from medha_actors.model.kernels.ir import compiled

COUNTER_BYTES = 64  # so that no two share a cache line
# looks at a counter before a thread offers its core to others, some 50 us
SPINS = 20_000
_I64 = ir.IntType(64)


@intrinsic
def load(typing, address):
    """The counter at an address; nothing after it is read before."""

    def emit(context, builder, signature, args):
        return builder.load_atomic(
            builder.inttoptr(args[0], _I64.as_pointer()), "acquire", 8
        )

    return types.int64(types.int64), emit


@intrinsic
def store(typing, address, value):
    """Set the counter at an address; everything before it is written before."""

    def emit(context, builder, signature, args):
        builder.store_atomic(
            args[1], builder.inttoptr(args[0], _I64.as_pointer()), "release", 8
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def add(typing, address, value):
    """Add to the counter at an address, between what is before and what is after; returns what it
    was."""

    def emit(context, builder, signature, args):
        place = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", place, args[1], "acq_rel")

    return types.int64(types.int64, types.int64), emit


@compiled
def reached(counter, number, spins):
    """Wait until a counter (an address) has reached a number; False: not within that many looks."""
    while load(counter) < number:
        spins -= 1
        if spins == 0:
            return False
    return True


@compiled
def wait(counters, numbers, spins):
    """The same for every counter and its number."""
    for which in range(counters.size):  # noqa: SIM110  (compiled: no generators)
        if not reached(counters[which], numbers[which], spins):
            return False
    return True
