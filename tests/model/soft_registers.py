"""Tile registers in memory: what AMX's instructions do, for machines that have none."""

from __future__ import annotations

from llvmlite import ir

from medha_actors.model.kernels.dot import ByteDot
from medha_actors.model.kernels.ir import I8, I32, I64, V16F, V16I
from medha_actors.model.kernels.matrix_tiles import ROWS, TileRegisters

REGISTER_BYTES = ROWS * 64


class SoftRegisters(TileRegisters):
    """Rows behind those that are configured keep what they held."""

    def configure(self, rows):
        with self.e.b.goto_entry_block():
            place = self.e.b.alloca(ir.VectorType(I8, 64), 8 * ROWS)
            place.align = 64
        self.start = self.e.b.ptrtoint(place, I64)
        self.held = rows

    def release(self):
        pass

    def zero(self, register):
        for row in range(ROWS):
            self.e.store(self.e.constant(0, V16I), self._row(register, I64(row)), 64)

    def load(self, register, address, distance):
        e = self.e
        rows, row_bytes = self._shape(register)
        with e.loop(rows) as loop:
            source = e.at(address, e.times(loop.index, distance))
            for word in range(0, row_bytes, 4):
                value = e.load(e.at(source, word), I32)
                e.store(value, e.at(self._row(register, loop.index), word), 4)

    def store(self, register, address, distance):
        e = self.e
        with e.loop(self.held) as loop:
            value = e.load(self._row(register, loop.index), V16I, 64)
            e.store(value, e.at(address, e.times(loop.index, distance)), 4)

    def multiply(self, name, sums, rows, others):
        e = self.e
        add = {"tdpbsud": self._bytes, "tdpbf16ps": self._bfloats}[name]
        with e.loop(self.held) as loop, e.loop(self.shapes.row_bytes // 4) as word:
            place = e.at(self._row(rows, loop.index), e.times(word.index, 4))
            other = e.load(self._row(others, word.index), V16I, 64)
            add(self._row(sums, loop.index), e.broadcast(place, I32), other)

    def _bytes(self, sums, values, weights):
        e = self.e
        dot = ByteDot(e, 8, "plain")
        e.store(dot.add([e.load(sums, V16I, 64)], [weights], values)[0], sums, 64)

    def _bfloats(self, sums, values, others):
        e = self.e
        e.store(e.dot_bf16(e.load(sums, V16F, 64), values, others, False), sums, 64)

    def _shape(self, register):
        if register in self.shapes.others:
            return I64(self.shapes.row_bytes // 4), 64
        return self.held, 64 if register in self.shapes.sums else self.shapes.row_bytes

    def _row(self, register, row):
        e = self.e
        return e.at(self.start, register * REGISTER_BYTES, e.times(row, 64))
