"""Payloads: tensors as the bytes of a frame, and back. Those on a GPU are staged through host
memory."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import torch

_DTYPES = {
    str(dtype): dtype
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int64)
}


class _TensorHead(msgspec.Struct, frozen=True, array_like=True):
    dtype: str
    shape: tuple[int, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(_TensorHead).decode


def packed(tensor: torch.Tensor) -> tuple[bytes, memoryview]:
    """The head that describes a tensor, and its bytes."""
    head = _encode(_TensorHead(str(tensor.dtype), tuple(tensor.shape)))
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    if not flat.numel():
        return head, memoryview(b"")
    return head, flat.view(torch.uint8).numpy().data


def received(packed_head: bytes, nbytes: int, read: Callable[[memoryview], None]) -> torch.Tensor:
    """The tensor (on the CPU) that a head describes; `read` fills a buffer with its bytes."""
    head = _decode_head(packed_head)
    flat = torch.empty(nbytes, dtype=torch.uint8)
    read(flat.numpy().data)
    return flat.view(_DTYPES[head.dtype]).view(head.shape)
