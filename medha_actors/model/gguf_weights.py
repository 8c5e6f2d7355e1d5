"""Tensors of a GGUF file under Hugging Face names, dequantised with torch."""

from __future__ import annotations

import logging
import math
import re

import numpy as np
import torch
from torch import Tensor

from medha_actors.errors import ModelError
from medha_actors.files.gguf import GgufFile
from medha_actors.files.gguf_header import GgufTensor
from medha_actors.files.gguf_kinds import KINDS
from medha_actors.files.stored import Stored
from medha_actors.model.cut import WHOLE, Cut
from medha_actors.model.gguf_blocks import UNPACK
from medha_actors.model.gguf_names import expert_of, gguf_name
from medha_actors.model.shapes import tensor_shapes
from medha_actors.model_spec import ModelSpec

_log = logging.getLogger("medha.model")
F32 = 0
F16 = 1
BF16 = 30
_PLAIN = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}
_AT_ONCE = 1 << 18  # values dequantised together: temporaries stay in the cache
_AT_ONCE_ASIDE = 1 << 24  # where they do not, and launches cost more


class GgufWeights:
    """Tensors by Hugging Face name; nothing is read before it is asked for."""

    def __init__(self, file: GgufFile, spec: ModelSpec) -> None:
        self.file = file
        self.spec = spec
        self.shapes = tensor_shapes(spec)

    def __contains__(self, name: str) -> bool:
        return gguf_name(name) in self.file.tensors

    def tensor(self, name: str, dtype: torch.dtype, cut: Cut = WHOLE) -> Tensor:
        """The dequantised tensor."""
        values = read_tensor(self.file, gguf_name(name), dtype, cut, expert_of(name))
        return self._in_order(name, values.view(cut.shape(self.shapes[name])))

    def blocks(self, name: str, cut: Cut = WHOLE) -> tuple[Tensor, int] | None:
        """A quantised matrix as stored, uint8 [rows, bytes of a row], and its kind; None if it is
        not of a kind in UNPACK, or cut inside its blocks."""
        kind = self.file.tensors[gguf_name(name)].kind
        if kind not in UNPACK:
            return None
        if cut.inside_blocks(KINDS[kind].values):
            assert cut.part is not None, "the whole goes through no block"
            if not expert_of(name):  # one of a layer's experts speaks for all
                _log.warning(
                    "%s is dequantised: its inputs %d to %d are no whole blocks of %d",
                    *(name, *cut.part, KINDS[kind].values),
                )
            return None
        raw = raw_tensor(self.file, gguf_name(name), cut, expert_of(name))
        return self._in_order(name, raw), kind

    def stored(self, name: str, cut: Cut = WHOLE) -> Stored | None:
        """Whole rows, of plain values or of a kind in UNPACK."""
        info = self._info(gguf_name(name))
        known = info.kind in UNPACK or info.kind in _PLAIN
        expert = expert_of(name)
        shape = info.shape if expert is None else info.shape[1:]
        if not known or (
            cut.part is not None and cut.axis == "columns" and len(shape) > 1
        ):
            return None
        path, offset, size = self.file.place(gguf_name(name))
        if expert is not None:
            size //= info.shape[0]
            offset += expert * size
        if cut.part is not None:
            if len(shape) == 1 and KINDS[info.kind].values > 1:
                return None
            row = size // shape[0]
            offset, size = offset + cut.part.first * row, cut.part.size * row
        return Stored(path, offset, size)

    def made(
        self, name: str, raw: Tensor, dtype: torch.dtype, cut: Cut = WHOLE
    ) -> Tensor:
        kind = self._info(gguf_name(name)).kind
        shape = cut.shape(self.shapes[name])
        if kind in _PLAIN:
            values = raw.view(_PLAIN[kind]).to(dtype)
        else:
            values = dequantise(
                raw.view(shape[0] if len(shape) > 1 else 1, -1), kind, dtype
            )
        return self._in_order(name, values.view(shape))

    def _info(self, name: str) -> GgufTensor:
        info = self.file.tensors.get(name)
        if info is None:
            raise ModelError(f"{self.file.path} has no tensor {name}")
        return info

    def _in_order(self, name: str, tensor: Tensor) -> Tensor:
        """Undo llama.cpp's reordering of query and key rows.

        It stores the rows of a head so that RoPE turns neighbours (2i, 2i+1); Hugging Face turns
        (i, i + half).
        """
        found = re.search(r"\.([qk])_proj\.", name)
        if self.spec.architecture != "llama" or found is None:
            return tensor
        heads = len(tensor) // self.spec.head_dim  # of the part that is read
        rows = tensor.view(heads, self.spec.head_dim // 2, 2, -1)
        return rows.transpose(1, 2).reshape(tensor.shape)


def raw_tensor(
    file: GgufFile, name: str, cut: Cut = WHOLE, expert: int | None = None
) -> Tensor:
    """The stored bytes, uint8 [rows, bytes of a row] ([1, bytes] for a vector), of all or of one
    expert; a cut must not go through blocks."""
    info = file.tensors[name]
    stored = file.stored(name)
    shape = info.shape
    if expert is not None:
        stored = stored.reshape(shape[0], -1)[expert]
        shape = shape[1:]
    rows = stored.reshape(math.prod(shape[:-1]), -1)
    part = np.array(rows[_bytes_of(cut, info)])  # a copy: the map is read-only
    return torch.from_numpy(part)


def _bytes_of(cut: Cut, info: GgufTensor) -> tuple[slice, ...]:
    """Where a part lies in the stored rows."""
    along_rows = len(info.shape) == 1 or cut.axis == "columns"
    if cut.part is None or not along_rows:
        return cut.places((1, 1))
    kind = KINDS[info.kind]
    first = cut.part.first // kind.values * kind.size
    stop = cut.part.stop // kind.values * kind.size
    return (slice(None), slice(first, stop))


def read_tensor(
    file: GgufFile,
    name: str,
    dtype: torch.dtype,
    cut: Cut = WHOLE,
    expert: int | None = None,
) -> Tensor:
    """The tensor, or one expert's part of it, dequantised in float32 and rounded to `dtype`."""
    info = file.tensors.get(name)
    if info is None:
        raise ModelError(f"{file.path} has no tensor {name}")
    shape = info.shape if expert is None else info.shape[1:]
    if cut.inside_blocks(KINDS[info.kind].values):
        whole = read_tensor(file, name, dtype, expert=expert)
        return whole[cut.places(shape)].contiguous()
    raw = raw_tensor(file, name, cut, expert)
    if info.kind in _PLAIN:
        values = raw.view(_PLAIN[info.kind]).to(dtype)
    elif info.kind in UNPACK:
        values = dequantise(raw, info.kind, dtype)
    else:
        values = _by_gguf_package(raw, info.kind).to(dtype)
    return values.view(cut.shape(shape))


def dequantise(raw: Tensor, kind: int, dtype: torch.dtype) -> Tensor:
    """Stored rows, uint8 [rows, bytes of a row] -> [rows, values], worked out in float32 and
    rounded to `dtype`."""
    _, values, size = KINDS[kind]
    blocks = raw.reshape(-1, size)
    out = torch.empty(len(blocks), values, dtype=dtype, device=raw.device)
    count = (_AT_ONCE if raw.device.type == "cpu" else _AT_ONCE_ASIDE) // values
    for some, into in zip(blocks.split(count), out.split(count), strict=True):
        into.copy_(UNPACK[kind](some).values())
    return out.view(len(raw), -1)


def _by_gguf_package(raw: Tensor, kind: int) -> Tensor:
    """Every other kind: complete, but slower."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    return torch.from_numpy(dequantize(raw.numpy(), GGMLQuantizationType(kind)))
