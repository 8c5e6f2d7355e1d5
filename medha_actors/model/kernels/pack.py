"""Weights in the layouts that linear.py reads (see layouts.py), packed once when a model is
loaded."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from medha_actors.files.gguf_kinds import KINDS
from medha_actors.model.gguf_blocks import IQ4_NL, UNPACK, Blocks
from medha_actors.model.kernels.layouts import (
    BLOCK,
    FORMS,
    LANES,
    LAYOUTS,
    PLAIN_BFLOAT,
    PLAIN_FLOAT,
    Activations,
    Layout,
)
from medha_actors.model.kernels.linear import linear_address

_ALIGNMENT = 64
_AT_ONCE = 1 << 19  # weights packed together: temporaries stay in the cache


class Packed(NamedTuple):
    """A weight matrix ready for the kernels; `data` is uint8 [columns, groups, bytes], aligned to
    64 bytes."""

    layout: Layout
    activations: Activations
    outputs: int
    inputs: int
    data: np.ndarray

    def part(self, first: int, last: int) -> Packed:
        """Some outputs alone; both are multiples of 16."""
        data = self.data[first // LANES : last // LANES]
        return self._replace(outputs=last - first, data=data)

    def row(self) -> tuple[int, ...]:
        """For the table that the kernels read: its fields are those of products.py."""
        return (
            FORMS.index(self.activations),
            linear_address(self.layout, self.activations),
            self.data.ctypes.data,
            self.outputs // LANES,
            self.inputs // BLOCK,
            self.data.strides[0],
        )


Stack = tuple[Packed, ...]
"""Matrices with the same inputs, whose outputs follow one another."""


def pack_blocks(raw: Tensor, gguf_kind: int, activations: Activations) -> Packed:
    """Pack a matrix as it stands in a GGUF file, uint8 [outputs, bytes of a row], of a kind in
    UNPACK."""
    outputs, width = raw.shape
    kind = KINDS[gguf_kind]
    layout = LAYOUTS["Q8_0" if gguf_kind == IQ4_NL else kind.name]
    inputs = width // kind.size * kind.values
    data = _empty(layout, outputs, inputs)
    rows = max(_AT_ONCE // inputs // LANES, 1) * LANES
    for first in range(0, outputs, rows):
        some = raw[first : first + rows]
        blocks = UNPACK[gguf_kind](some.reshape(-1, kind.size))
        _put(blocks, layout, data[first // LANES : (first + rows) // LANES])
    return Packed(layout, activations, outputs, inputs, data)


def pack_dense(weight: Tensor) -> Packed:
    """Pack a bfloat16 matrix [outputs, inputs] as it is, any other one in float32."""
    outputs, inputs = weight.shape
    bfloat = weight.dtype == torch.bfloat16
    layout, step = (PLAIN_BFLOAT, 2) if bfloat else (PLAIN_FLOAT, 1)
    plain = weight.view(torch.int16) if bfloat else weight.float().view(torch.int32)
    columns = (
        plain.reshape(outputs // LANES, LANES, inputs // step, step)
        .transpose(1, 2)
        .contiguous()
    )
    data = _empty(layout, outputs, inputs)
    data[...] = columns.numpy().view(np.uint8).reshape(data.shape)
    return Packed(layout, "bfloat16" if bfloat else "float32", outputs, inputs, data)


def _put(blocks: Blocks, layout: Layout, data: np.ndarray) -> None:
    """Write some rows' blocks into their columns."""
    columns, groups, _ = data.shape
    shape = (columns, LANES, groups, -1)
    values = layout.group * layout.value_bytes
    head = values + layout.group * layout.scale_bytes
    data[..., :values] = _values(blocks.q.numpy().reshape(*shape), layout.bits)
    factors = [part for part in (blocks.d, blocks.m) if part is not None]
    heads = [
        _lanes_last(part.numpy().view(np.uint8).reshape(*shape)) for part in factors
    ]
    if layout.group == 1:
        data[..., values:] = np.concatenate(heads, -1)
        return
    scale = blocks.scale
    assert scale is not None
    parts = scale.view(-1, layout.group, scale.shape[1] // layout.group)
    if blocks.minimum is not None:
        parts = torch.stack((scale, blocks.minimum), -1)
    elif parts.shape[-1] == 1:  # one for 32 inputs, where there is room for two of 16
        parts = parts.expand(-1, -1, 2)
    signed = parts.reshape(*shape, 2).permute(0, 2, 3, 4, 1).contiguous()
    data[..., values:head] = signed.numpy().view(np.uint8).reshape(columns, groups, -1)
    found = np.concatenate(heads, -1)
    data[..., head : head + found.shape[-1]] = found


def _values(q: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [columns, 16, groups, inputs of a group] -> [columns, groups, bytes of the values]"""
    columns, _, groups, inputs = q.shape
    words = np.ascontiguousarray(q).view(np.uint32)  # of four inputs
    words = np.moveaxis(words, 1, 3).reshape(
        columns, groups, inputs // BLOCK, BLOCK // 4, LANES
    )
    parts = [words] if bits == 8 else _halves(words, bits)
    joined = np.ascontiguousarray(np.concatenate(parts, -2))
    return joined.view(np.uint8).reshape(columns, groups, -1)


def _halves(words: np.ndarray, bits: int) -> list[np.ndarray]:
    """Halves of bytes two words to a vector, and vectors of the bits above them."""
    low = words & 0x0F0F0F0F
    parts = [low[..., ::2, :] | low[..., 1::2, :] << 4]
    if bits == 4:
        return parts
    more = bits - 4
    apart = 8 // more
    high = words >> 4 & 0x0F0F0F0F
    for first in range(0, BLOCK // 4, apart):
        together = high[..., first, :].copy()
        for place in range(1, apart):
            together |= high[..., first + place, :] << place * more
        parts.append(together[..., None, :])
    return parts


def _lanes_last(x: np.ndarray) -> np.ndarray:
    """uint8 [columns, 16, groups, 2] -> [columns, groups, 32]: a float16 of each output."""
    columns, _, groups, _ = x.shape
    return x.transpose(0, 2, 1, 3).reshape(columns, groups, -1)


def _empty(layout: Layout, outputs: int, inputs: int) -> np.ndarray:
    shape = (outputs // LANES, inputs // (BLOCK * layout.group), layout.group_bytes)
    return aligned(int(np.prod(shape)), np.uint8).reshape(shape)


def aligned(count: int, kind: type) -> np.ndarray:
    """Zeros whose memory is only taken when it is written, aligned to the kernels' vectors."""
    size = count * np.dtype(kind).itemsize
    raw = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(kind)
