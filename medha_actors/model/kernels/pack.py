"""Weights in the layouts that linear.py reads (see there), packed once when a model is
loaded."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from medha_actors.model.gguf_weights import Q4_0, Q4_1, Q8_0
from medha_actors.model.kernels.linear import (
    BFLOAT,
    BLOCK,
    BLOCK_BYTES,
    FLOAT,
    Q4_FLOAT,
    Q4_INT8,
    Q4_INT16,
    Q8_FLOAT,
    Q8_INT8,
    Q8_INT16,
    linear_address,
)

_LANES = 16
_ALIGNMENT = 64

Activations = Literal["int8", "int16", "float32"]
_KINDS = {
    "int8": (Q4_INT8, Q8_INT8),
    "int16": (Q4_INT16, Q8_INT16),
    "float32": (Q4_FLOAT, Q8_FLOAT),
}


class Packed(NamedTuple):
    """A weight matrix ready for the kernels; `data` is uint8 [columns, blocks, bytes], aligned to
    64 bytes."""

    kind: int
    outputs: int
    inputs: int
    data: np.ndarray

    def row(self) -> tuple[int, int, int, int, int]:
        """(kind, code address, data address, columns, blocks) for the table that the kernels
        read."""
        columns = self.outputs // _LANES
        blocks = self.inputs // BLOCK
        return self.kind, linear_address(self.kind), self.data.ctypes.data, columns, blocks


def pack_blocks(raw: Tensor, gguf_kind: int, activations: Activations) -> Packed:
    """Pack a matrix as it stands in a GGUF file, uint8 [outputs, bytes of a row] (kinds Q4_0, Q4_1
    and Q8_0)."""
    rows = raw.numpy()
    four_bits, eight_bits = _KINDS[activations]
    if gguf_kind == Q8_0:
        return _pack_q8_0(rows, eight_bits)
    assert gguf_kind in (Q4_0, Q4_1), f"no kernel for GGUF kind {gguf_kind}"
    return _pack_q4(rows, four_bits, gguf_kind == Q4_1)


def pack_dense(weight: Tensor) -> Packed:
    """Pack a bfloat16 matrix [outputs, inputs] as it is, any other one in float32."""
    outputs, inputs = weight.shape
    kind, step = (BFLOAT, 2) if weight.dtype == torch.bfloat16 else (FLOAT, 1)
    plain = weight.view(torch.int16) if step == 2 else weight.float().view(torch.int32)
    columns = (
        plain.reshape(outputs // _LANES, _LANES, inputs // step, step).transpose(1, 2).contiguous()
    )
    data = _aligned((outputs // _LANES, inputs // BLOCK, BLOCK_BYTES[kind]))
    data[...] = columns.numpy().view(np.uint8).reshape(data.shape)
    return Packed(kind, outputs, inputs, data)


def _pack_q4(rows: np.ndarray, kind: int, has_minimum: bool) -> Packed:
    outputs, width = rows.shape
    head = 4 if has_minimum else 2
    blocks = width // (head + BLOCK // 2)
    columns = outputs // _LANES
    split = rows.reshape(columns, _LANES, blocks, head + BLOCK // 2)
    scale = split[..., :2]
    nibbles = split[..., head:]
    if has_minimum:
        minimum = split[..., 2:4]
    else:  # Q4_0 is (q - 8) d
        minimum = (np.ascontiguousarray(scale).view(np.float16) * np.float16(-8)).view(np.uint8)
    # GGUF byte i holds values i and i + 16; here a 64-byte word holds inputs 8w..8w+3 (low halves)
    # and 8w+4..8w+7
    values = np.concatenate((nibbles & 15, nibbles >> 4), -1).reshape(
        columns, _LANES, blocks, 4, 2, 4
    )
    words = values[..., 0, :] | values[..., 1, :] << 4
    data = _aligned((columns, blocks, BLOCK_BYTES[kind]))
    data[..., :256] = words.transpose(0, 2, 3, 1, 4).reshape(columns, blocks, 256)
    data[..., 256:288] = scale.transpose(0, 2, 1, 3).reshape(columns, blocks, 32)
    data[..., 288:] = minimum.transpose(0, 2, 1, 3).reshape(columns, blocks, 32)
    return Packed(kind, outputs, blocks * BLOCK, data)


def _pack_q8_0(rows: np.ndarray, kind: int) -> Packed:
    outputs, width = rows.shape
    blocks = width // (2 + BLOCK)
    columns = outputs // _LANES
    split = rows.reshape(columns, _LANES, blocks, 2 + BLOCK)
    values = (split[..., 2:] ^ 128).reshape(
        columns, _LANES, blocks, 8, 4
    )  # signed to unsigned: q + 128
    data = _aligned((columns, blocks, BLOCK_BYTES[kind]))
    data[..., :512] = values.transpose(0, 2, 3, 1, 4).reshape(columns, blocks, 512)
    data[..., 512:] = split[..., :2].transpose(0, 2, 1, 3).reshape(columns, blocks, 32)
    return Packed(kind, outputs, blocks * BLOCK, data)


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    return aligned(int(np.prod(shape)), np.uint8).reshape(shape)


def aligned(count: int, kind: type) -> np.ndarray:
    """Zeros whose memory is only taken when it is written, aligned to the kernels' vectors."""
    size = count * np.dtype(kind).itemsize
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(kind)
