"""Payloads: tensors as the bytes of a frame, and back. Those on a GPU are staged through host
memory, unless the link has a transport for them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import torch

_DTYPES = {
    str(dtype): dtype
    for dtype in (
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.int32,
        torch.int64,
    )
}


class TensorHead(msgspec.Struct, frozen=True, array_like=True):
    """What follows in a frame; `announced`: nothing does, the link's transport brings it."""

    dtype: str
    shape: tuple[int, ...]
    announced: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        return _DTYPES[self.dtype]


_encode = msgspec.msgpack.Encoder().encode
head_of = msgspec.msgpack.Decoder(TensorHead).decode


def announced(tensor: torch.Tensor) -> bytes:
    """The head of a tensor that the link's transport carries."""
    return _encode(TensorHead(str(tensor.dtype), tuple(tensor.shape), announced=True))


def packed(tensor: torch.Tensor) -> tuple[bytes, memoryview]:
    """The head that describes a tensor, and its bytes."""
    head = _encode(TensorHead(str(tensor.dtype), tuple(tensor.shape)))
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    if not flat.numel():
        return head, memoryview(b"")
    return head, flat.view(torch.uint8).numpy().data


def received(
    head: TensorHead, nbytes: int, read: Callable[[memoryview], None]
) -> torch.Tensor:
    """The tensor (on the CPU) that a head describes; `read` fills a buffer with its bytes."""
    flat = torch.empty(nbytes, dtype=torch.uint8)
    read(flat.numpy().data)
    return flat.view(head.torch_dtype).view(head.shape)
