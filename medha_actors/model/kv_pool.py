"""The paged cache of keys and values of one stage.

Which request owns which page is the scheduler's business (medha_actors.core.kv_plan); here pages
are numbers.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

Layout = Literal["head_major", "token_major"]


class KvPool:
    """Keys and values, [layers, 2, pages, kv_heads, page_tokens, head_dim].

    Head-major within a page: the tokens of one head lie side by side, which attention on a CPU
    reads twice as fast. With the layout "token_major" a page is [page_tokens, kv_heads, head_dim]
    instead, as flash-attn wants it.
    """

    def __init__(
        self,
        layers: int,
        pages: int,
        page_tokens: int,
        kv_heads: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
        layout: Layout = "head_major",
    ) -> None:
        token_major = layout == "token_major"
        page = (page_tokens, kv_heads) if token_major else (kv_heads, page_tokens)
        shape = (layers, 2, pages, *page, head_dim)
        on_cpu = device.type == "cpu"
        self.data = (
            _untouched_zeros(shape, dtype)
            if on_cpu
            else torch.zeros(shape, dtype=dtype, device=device)
        )
        self.pages = pages
        self.page_tokens = page_tokens
        self.kv_heads = kv_heads
        self.head_dim = head_dim
        # of a token and of a head, in rows
        self.strides = (kv_heads, 1) if token_major else (1, page_tokens)
        # one row per (k or v, page, head, token)
        self.rows = [layer.view(-1, head_dim) for layer in self.data]
        # if head-major
        self.head_pages = [layer.view(-1, page_tokens, head_dim) for layer in self.data]

    def rows_of(self, slots: Tensor) -> Tensor:
        """Row numbers [tokens * 2 * kv_heads] of tokens that lie in `slots` (see StepPlan): keys
        first, then values."""
        token, head = self.strides
        heads = torch.arange(self.kv_heads, device=slots.device) * head
        rows = self.kv_heads * self.page_tokens
        page_first = slots // self.page_tokens * rows
        first = (page_first + slots % self.page_tokens * token)[:, None] + heads
        return torch.cat((first, first + self.pages * rows), 1).view(-1)

    def head_pages_of(self, pages: Tensor) -> Tensor:
        """Numbers of (page, head) blocks for page tables [..., pages]: [2, ..., kv_heads,
        pages]."""
        heads = torch.arange(self.kv_heads, device=pages.device)
        keys = pages[..., None, :] * self.kv_heads + heads[:, None]
        return torch.stack((keys, keys + self.pages * self.kv_heads))

    def write(self, layer: int, rows: Tensor, kv: Tensor) -> None:
        """Store keys and values [tokens, 2 * kv_heads, head_dim] at `rows` (see rows_of)."""
        self.rows[layer].index_copy_(0, rows, kv.reshape(-1, self.head_dim))

    def gather(self, layer: int, head_pages: Tensor) -> Tensor:
        """Contiguous copies of whole pages: [2, ..., kv_heads, n] -> [2, ..., kv_heads, n *
        page_tokens, head_dim]."""
        blocks: Tensor = self.head_pages[layer].index_select(0, head_pages.view(-1))
        return blocks.view(*head_pages.shape[:-1], -1, self.head_dim)


def _untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros whose memory is only taken when it is first written (numpy asks the kernel for zero
    pages)."""
    count = int(np.prod(shape)) * dtype.itemsize
    return torch.from_numpy(np.zeros(count, np.uint8)).view(dtype).view(shape)
