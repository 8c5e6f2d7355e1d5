"""The tile registers of Intel's AMX: the products of 16 rows with 16 outputs in one instruction.

A register holds up to 16 rows of 64 bytes. A product multiplies rows of bytes (or bfloat16 pairs)
with weights that lie four (two) inputs to a word, 16 outputs a row, and adds to 16 by 16 sums: the
orders in which linear.py's and attention_tile.py's operands lie.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Sequence
from typing import NamedTuple

from llvmlite import ir

from medha_actors.model.kernels.ir import FEATURES, I8, I16, I64, Emit

ROWS = 16
_ARCH_PRCTL = 158
_REQUEST_PERMISSION = 0x1023
_TILE_DATA = 18


def permitted() -> bool:
    """Whether this machine has the tiles and the system lets this process use them: all of its
    threads, from now on."""
    wanted = {"amx-tile", "amx-int8", "amx-bf16", "avx512f", "avx512vnni", "avx512bf16"}
    if not wanted <= FEATURES:
        return False
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    call = ctypes.CDLL(None).syscall
    return bool(call(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)


PERMITTED = permitted()


class Shapes(NamedTuple):
    """Which registers hold sums, rows and what these are multiplied with; bytes of a row."""

    sums: Sequence[int]
    rows: Sequence[int]
    others: Sequence[int]
    row_bytes: int


class TileRegisters:
    """Appends their instructions; addresses and distances of rows in bytes."""

    def __init__(self, e: Emit, shapes: Shapes) -> None:
        self.e = e
        self.shapes = shapes

    def configure(self, rows: ir.Value) -> None:
        """Set the shapes of all registers, for products of so many rows; goes with release()."""
        e = self.e
        count = e.b.trunc(rows, I8)
        shapes = self.shapes
        place = e.variable(ir.Constant(ir.ArrayType(I64, 8), None))
        start = e.b.ptrtoint(place, I64)
        e.store(I8(1), start)
        sizes = (
            *((register, 64, count) for register in shapes.sums),
            *((register, shapes.row_bytes, count) for register in shapes.rows),
            *((register, 64, I8(shapes.row_bytes // 4)) for register in shapes.others),
        )
        for register, row_bytes, held in sizes:
            e.store(I16(row_bytes), e.at(start, 16 + 2 * register))
            e.store(held, e.at(start, 48 + register))
        self._do("ldtilecfg", self._pointer(start))

    def release(self) -> None:
        """Threads that hold no tiles are switched sooner."""
        self._do("tilerelease")

    def zero(self, register: int) -> None:
        self._do("tilezero", I8(register))

    def load(self, register: int, address: ir.Value, distance: ir.Value) -> None:
        self._do("tileloadd64", I8(register), self._pointer(address), distance)

    def store(self, register: int, address: ir.Value, distance: ir.Value) -> None:
        self._do("tilestored64", I8(register), self._pointer(address), distance)

    def multiply(self, name: str, sums: int, rows: int, others: int) -> None:
        """sums += rows others: `tdpbsud` of signed and unsigned bytes, `tdpbf16ps` of bfloat16."""
        self._do(name, I8(sums), I8(rows), I8(others))

    def _pointer(self, address: ir.Value) -> ir.Value:
        return self.e.b.inttoptr(address, I8.as_pointer())

    def _do(self, name: str, *values: ir.Value) -> None:
        self.e.call(f"llvm.x86.{name}", ir.VoidType(), *values)
