"""The blocks of quantised GGUF kinds taken apart: integers, and the scales they are multiplied by.

Each kind that is listed here is read without loss into the same form, from which it is dequantised
(here, on any device) and packed for the CPU kernels (kernels/pack.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Q4_0 = 2
Q4_1 = 3
Q5_0 = 6
Q5_1 = 7
Q8_0 = 8
Q4_K = 12
Q5_K = 13
Q6_K = 14
IQ4_NL = 20
IQ4_XS = 23

# what the 4 bits of IQ4_NL and IQ4_XS stand for
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


class Blocks(NamedTuple):
    """w = d scale (q - zero) + m minimum; a block in each row of every tensor.

    In float32 the products of scales are exact, and so is everything up to the last addition.
    """

    q: Tensor  # uint8 [blocks, values of a block]
    d: Tensor  # float16 [blocks, 1]
    zero: int = 0
    m: Tensor | None = None  # float16 [blocks, 1]
    # int8 [blocks, parts]: each for values of a part, in order
    scale: Tensor | None = None
    minimum: Tensor | None = None  # the same

    def values(self) -> Tensor:
        """float32 [blocks, values of a block]"""
        d = self.d.float()
        if self.scale is not None:
            d = d * self.scale
        q = self.q.float() - self.zero
        w = q.view(len(q), d.shape[1], -1) * d.unsqueeze(2)
        if self.m is not None:
            m = self.m.float()
            if self.minimum is not None:
                m = m * self.minimum
            w += m.unsqueeze(2)
        return w.view(q.shape)


def _q4_0(raw: Tensor) -> Blocks:
    return Blocks(_nibbles(raw[:, 2:], 16), _float16(raw[:, :2]), 8)


def _q4_1(raw: Tensor) -> Blocks:
    return Blocks(
        _nibbles(raw[:, 4:], 16), _float16(raw[:, :2]), 0, _float16(raw[:, 2:4])
    )


def _q5_0(raw: Tensor) -> Blocks:
    return Blocks(_fifth_bit(raw[:, 2:6], raw[:, 6:]), _float16(raw[:, :2]), 16)


def _q5_1(raw: Tensor) -> Blocks:
    q = _fifth_bit(raw[:, 4:8], raw[:, 8:])
    return Blocks(q, _float16(raw[:, :2]), 0, _float16(raw[:, 2:4]))


def _q8_0(raw: Tensor) -> Blocks:
    return Blocks(raw[:, 2:] ^ 128, _float16(raw[:, :2]), 128)


def _q4_k(raw: Tensor) -> Blocks:
    scale, minimum = _six_bits(raw[:, 4:16])
    q = _nibbles(raw[:, 16:], 32)
    return Blocks(q, _float16(raw[:, :2]), 0, -_float16(raw[:, 2:4]), scale, minimum)


def _q5_k(raw: Tensor) -> Blocks:
    scale, minimum = _six_bits(raw[:, 4:16])
    high = _spread(raw[:, 16:48], 32, 1)
    q = _nibbles(raw[:, 48:], 32) | high << 4
    return Blocks(q, _float16(raw[:, :2]), 0, -_float16(raw[:, 2:4]), scale, minimum)


def _q6_k(raw: Tensor) -> Blocks:
    q = _nibbles(raw[:, :128], 64) | _spread(raw[:, 128:192], 32, 2) << 4
    scale = raw[:, 192:208].contiguous().view(torch.int8)
    return Blocks(q, _float16(raw[:, 208:]), 32, scale=scale)


def _iq4_nl(raw: Tensor) -> Blocks:
    return Blocks(_looked_up(_nibbles(raw[:, 2:], 16)), _float16(raw[:, :2]), 128)


def _iq4_xs(raw: Tensor) -> Blocks:
    high = _spread(raw[:, 2:4], 1, 2)
    scale = (_nibbles(raw[:, 4:8], 1) | high << 4).view(torch.int8) - 32
    return Blocks(
        _looked_up(_nibbles(raw[:, 8:], 16)), _float16(raw[:, :2]), 128, scale=scale
    )


def _float16(two_bytes: Tensor) -> Tensor:
    return two_bytes.contiguous().view(torch.float16)


def _spread(packed: Tensor, run: int, bits: int) -> Tensor:
    """Values of `bits` bits: the lowest of `run` bytes come first, then the next of the same
    bytes, and so on; then the next `run` bytes."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    runs = packed.reshape(len(packed), -1, 1, run) >> shifts.view(-1, 1)
    return (runs & (1 << bits) - 1).view(len(packed), -1)


def _nibbles(packed: Tensor, run: int) -> Tensor:
    return _spread(packed, run, 4)


def _fifth_bit(bits: Tensor, nibbles: Tensor) -> Tensor:
    """The values of Q5_0 and Q5_1: bit i of four bytes belongs to value i."""
    return _nibbles(nibbles, 16) | _spread(bits, 1, 1) << 4


def _six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """The eight scales and the eight minimums of a Q4_K or Q5_K block, from 12 bytes.

    The first four of each are six bits of a byte of their own; the two bits left over there are
    the highest of the last four, whose others are the nibbles of the last four bytes.
    """
    scale, minimum, nibbles = packed.split(4, 1)
    late_scale = nibbles & 15 | scale >> 6 << 4
    late_minimum = nibbles >> 4 | minimum >> 6 << 4
    return (
        torch.cat((scale & 63, late_scale), 1).view(torch.int8),
        torch.cat((minimum & 63, late_minimum), 1).view(torch.int8),
    )


def _looked_up(nibbles: Tensor) -> Tensor:
    table = torch.tensor(_IQ4, device=nibbles.device) + 128
    return table.to(torch.uint8)[nibbles.int()]


UNPACK: dict[int, Callable[[Tensor], Blocks]] = {
    Q4_0: _q4_0,
    Q4_1: _q4_1,
    Q5_0: _q5_0,
    Q5_1: _q5_1,
    Q8_0: _q8_0,
    Q4_K: _q4_k,
    Q5_K: _q5_k,
    Q6_K: _q6_k,
    IQ4_NL: _iq4_nl,
    IQ4_XS: _iq4_xs,
}
"""By kind: uint8 [blocks, bytes of a block] -> Blocks."""
