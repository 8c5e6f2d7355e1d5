"""Attention through the flash-attn package (CUDA): it reads keys and values in their pages, nothing
is gathered.

Its pool is token-major within a page, and its pages must be multiples of 256 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from medha_actors.errors import ModelError
from medha_actors.model.attention import Piece
from medha_actors.model.kv_pool import KvPool

PAGE_MULTIPLE = 256


def load_flash_attn() -> ModuleType:
    """The flash_attn package; it is imported only when it was chosen."""
    try:
        import flash_attn
    except ImportError as error:
        raise ModelError(
            f"attention flash_attn is configured, but the package cannot be imported: {error}"
        ) from error
    return flash_attn


@dataclass(slots=True)
class Pages:
    """Rows that attend to paged contexts, in one call: a chunk of one request, or single rows of
    several."""

    rows: slice | Tensor
    batch: int
    lengths: Tensor  # int32 [batch]: tokens of each context, the rows' own included
    tables: Tensor  # int32 [batch, pages]
    causal: bool  # the rows are the last ones of their context


class FlashAttention:
    """See attention.Kernels. The step's own keys are in the pool before these are called."""

    def __init__(self, pool: KvPool) -> None:
        if pool.page_tokens % PAGE_MULTIPLE:
            raise ModelError(
                "attention flash_attn needs kv_cache.page_tokens to be a multiple of "
                f"{PAGE_MULTIPLE}"
            )
        self.pool = pool
        self.attend = load_flash_attn().flash_attn_with_kvcache

    def prepare(self, pieces: Sequence[Piece]) -> tuple[list[Pages], list[Pages]]:
        chunks = [
            self._pages(slice(piece.first, piece.stop), [piece])
            for piece in pieces
            if piece.rows > 1 and (piece.writes or piece.cached)
        ]
        single = [piece for piece in pieces if piece.rows == 1 and piece.cached + piece.writes > 0]
        if not single:
            return chunks, []
        rows = torch.tensor([piece.first for piece in single], device=self.pool.data.device)
        return chunks, [self._pages(rows, single)]

    def _pages(self, rows: slice | Tensor, pieces: Sequence[Piece]) -> Pages:
        device = self.pool.data.device
        lengths = [piece.cached + piece.rows * piece.writes for piece in pieces]
        tables = torch.zeros(
            len(pieces), -(-max(lengths) // self.pool.page_tokens), dtype=torch.int32
        )
        for row, (piece, length) in enumerate(zip(pieces, lengths, strict=True)):
            pages = -(-length // self.pool.page_tokens)
            tables[row, :pages] = piece.table[:pages]
        counts = torch.tensor(lengths, dtype=torch.int32, device=device)
        return Pages(
            rows, len(pieces), counts, tables.to(device), pieces[0].writes and pieces[0].rows > 1
        )

    def prefill(
        self, layer: int, chunk: Pages, q: Tensor, kv: Tensor, out: Tensor, lse: Tensor | None
    ) -> None:
        self.decode(layer, chunk, q, out, lse)

    def decode(self, layer: int, batch: Pages, q: Tensor, out: Tensor, lse: Tensor | None) -> None:
        heads, head_dim = q.shape[1:]
        done, done_lse = self.attend(
            q[batch.rows].view(batch.batch, -1, heads, head_dim),
            self.pool.data[layer, 0],
            self.pool.data[layer, 1],
            cache_seqlens=batch.lengths,
            block_table=batch.tables,
            causal=batch.causal,
            return_softmax_lse=True,
        )
        out[batch.rows] = done.view(-1, heads, head_dim)
        if lse is not None:
            lse[batch.rows] = done_lse.transpose(1, 2).reshape(-1, heads)
