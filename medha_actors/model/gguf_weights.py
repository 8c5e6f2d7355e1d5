"""Tensors of a GGUF file under Hugging Face names, dequantised with torch."""

from __future__ import annotations

import math
import re

import numpy as np
import torch
from torch import Tensor

from medha_actors.errors import ModelError
from medha_actors.files.gguf import GgufFile
from medha_actors.files.gguf_kinds import KINDS
from medha_actors.model.gguf_blocks import UNPACK
from medha_actors.model_spec import ModelSpec

F32 = 0
F16 = 1
BF16 = 30
_PLAIN = {F32: torch.float32, F16: torch.float16, BF16: torch.bfloat16}
_AT_ONCE = 1 << 18  # values dequantised together: temporaries stay in the cache

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class GgufWeights:
    """Tensors by Hugging Face name; nothing is read before it is asked for."""

    def __init__(self, file: GgufFile, spec: ModelSpec) -> None:
        self.file = file
        self.spec = spec

    def __contains__(self, name: str) -> bool:
        return gguf_name(name) in self.file.tensors

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """The dequantised tensor."""
        return self._in_order(name, read_tensor(self.file, gguf_name(name), dtype))

    def blocks(self, name: str) -> tuple[Tensor, int] | None:
        """A quantised matrix as stored, uint8 [rows, bytes of a row], and its kind; None if it is
        not of a kind in UNPACK."""
        kind = self.file.tensors[gguf_name(name)].kind
        if kind not in UNPACK:
            return None
        return self._in_order(name, raw_tensor(self.file, gguf_name(name))), kind

    def _in_order(self, name: str, tensor: Tensor) -> Tensor:
        """Undo llama.cpp's reordering of query and key rows.

        It stores the rows of a head so that RoPE turns neighbours (2i, 2i+1); Hugging Face turns
        (i, i + half).
        """
        found = re.search(r"\.([qk])_proj\.", name)
        if self.spec.architecture != "llama" or found is None:
            return tensor
        heads = self.spec.heads if found[1] == "q" else self.spec.kv_heads
        rows = tensor.view(heads, self.spec.head_dim // 2, 2, -1)
        return rows.transpose(1, 2).reshape(tensor.shape)


def gguf_name(name: str) -> str:
    """model.layers.3.mlp.up_proj.weight -> blk.3.ffn_up.weight"""
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, rest = stem.split(".", 3)
        return f"blk.{layer}.{_NAMES[rest]}.{kind}"
    return f"{_NAMES[stem]}.{kind}"


def raw_tensor(file: GgufFile, name: str) -> Tensor:
    """The stored bytes, uint8 [rows, bytes of a row] ([1, bytes] for a vector)."""
    rows = math.prod(file.tensors[name].shape[:-1])
    stored = np.array(file.stored(name))  # a copy: the map is read-only
    return torch.from_numpy(stored).view(rows, -1)


def read_tensor(file: GgufFile, name: str, dtype: torch.dtype) -> Tensor:
    """The tensor, dequantised in float32 and rounded to `dtype`."""
    info = file.tensors.get(name)
    if info is None:
        raise ModelError(f"{file.path} has no tensor {name}")
    if info.kind in _PLAIN:
        return raw_tensor(file, name).view(-1).view(_PLAIN[info.kind]).view(info.shape).to(dtype)
    if info.kind in UNPACK:
        return dequantise(raw_tensor(file, name), info.kind, dtype).view(info.shape)
    return _by_gguf_package(file, name).to(dtype)


def dequantise(raw: Tensor, kind: int, dtype: torch.dtype) -> Tensor:
    """Stored rows, uint8 [rows, bytes of a row] -> [rows, values], worked out in float32 and
    rounded to `dtype`."""
    _, values, size = KINDS[kind]
    blocks = raw.reshape(-1, size)
    out = torch.empty(len(blocks), values, dtype=dtype, device=raw.device)
    count = _AT_ONCE // values
    for some, into in zip(blocks.split(count), out.split(count), strict=True):
        into.copy_(UNPACK[kind](some).values())
    return out.view(len(raw), -1)


def _by_gguf_package(file: GgufFile, name: str) -> Tensor:
    """Every other kind: complete, but slower."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    info = file.tensors[name]
    rows = file.stored(name).reshape(math.prod(info.shape[:-1]), -1)
    return torch.from_numpy(dequantize(rows, GGMLQuantizationType(info.kind))).view(info.shape)
