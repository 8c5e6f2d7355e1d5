"""Attention kernels for a CPU, on torch's fused operator.

A chunk attends to the cached part (no mask) and to itself (causal) and merges the two. The query heads that share a
key head are folded into extra rows, so that keys and values are read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medha_actors.model.attention import Piece
from medha_actors.model.kv_pool import KvPool
from medha_actors.model.merge import merge

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(slots=True)
class Chunk:
    """A prefill chunk. `head_pages` is None where nothing is cached."""

    rows: slice
    cached: int
    writes: bool
    head_pages: Tensor | None


@dataclass(slots=True)
class DecodeBatch:
    """Single rows with similar context lengths, padded to the longest."""

    rows: Tensor
    head_pages: Tensor  # [2, batch, kv_heads, pages]
    mask: Tensor  # [batch, 1, 1, pages * page_tokens], 0 or -inf


class CpuAttention:
    """See attention.Kernels."""

    def __init__(self, pool: KvPool, heads: int) -> None:
        self.pool = pool
        self.heads = heads

    def prepare(self, pieces: Sequence[Piece], partial: bool) -> tuple[list[Chunk], list[DecodeBatch]]:
        chunks = [self._chunk(piece) for piece in pieces if piece.rows > 1 and (piece.writes or piece.cached)]
        single = [piece for piece in pieces if piece.rows == 1 and piece.cached + piece.writes > 0]
        return chunks, [self._batch(alike) for alike in _similar(single, self.pool.page_tokens)]

    def _chunk(self, piece: Piece) -> Chunk:
        pages = -(-piece.cached // self.pool.page_tokens)
        head_pages = self.pool.head_pages_of(piece.table[:pages]) if pages else None
        return Chunk(slice(piece.first, piece.stop), piece.cached, piece.writes, head_pages)

    def _batch(self, pieces: Sequence[Piece]) -> DecodeBatch:
        size = self.pool.page_tokens
        lengths = torch.tensor([piece.cached + piece.writes for piece in pieces])
        longest = -(-int(lengths.max()) // size)
        tables = torch.zeros(len(pieces), longest, dtype=torch.int64)
        for row, piece in enumerate(pieces):
            pages = -(-(piece.cached + piece.writes) // size)
            tables[row, :pages] = piece.table[:pages]
        hidden = torch.arange(longest * size) >= lengths[:, None]
        mask = torch.zeros(hidden.shape, dtype=self.pool.data.dtype).masked_fill_(hidden, -torch.inf)
        rows = torch.tensor([piece.first for piece in pieces])
        return DecodeBatch(rows, self.pool.head_pages_of(tables), mask[:, None, None])

    def prefill(self, layer: int, chunk: Chunk, q: Tensor, kv: Tensor, out: Tensor, lse: Tensor | None) -> None:
        kv_heads, rows = self.pool.kv_heads, chunk.rows
        own_q = q[rows].transpose(0, 1).contiguous()  # [heads, rows, head_dim]
        outs, lses = [], []
        if chunk.head_pages is not None:
            cached = self.pool.gather(layer, chunk.head_pages)[:, None, :, : chunk.cached]
            folded = own_q.view(1, kv_heads, -1, own_q.shape[-1])
            piece, piece_lse = _flash(folded, cached[0], cached[1])
            outs.append(piece.reshape(own_q.shape))
            lses.append(piece_lse.reshape(own_q.shape[:2]))
        if chunk.writes:
            own = kv[rows].transpose(0, 1)[None]
            piece, piece_lse = _flash(own_q[None], own[:, :kv_heads], own[:, kv_heads:], is_causal=True)
            outs.append(piece[0])
            lses.append(piece_lse[0])
        both, both_lse = merge(outs, lses) if len(outs) > 1 else (outs[0], lses[0])
        out[rows] = both.transpose(0, 1)
        if lse is not None:
            lse[rows] = both_lse.transpose(0, 1)

    def decode(self, layer: int, batch: DecodeBatch, q: Tensor, out: Tensor, lse: Tensor | None) -> None:
        keys, values = self.pool.gather(layer, batch.head_pages)
        own_q = q.index_select(0, batch.rows)
        folded = own_q.view(len(batch.rows), self.pool.kv_heads, -1, own_q.shape[-1])
        done, done_lse = _flash(folded, keys, values, attn_mask=batch.mask)
        out.index_copy_(0, batch.rows, done.reshape(own_q.shape))
        if lse is not None:
            lse.index_copy_(0, batch.rows, done_lse.reshape(own_q.shape[:2]))


def _similar(pieces: Sequence[Piece], page_tokens: int) -> list[list[Piece]]:
    """Groups in which the longest context is at most twice the shortest (or all are short)."""
    batches: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda piece: piece.cached):
        if batches and piece.cached <= max(2 * batches[-1][0].cached, 4 * page_tokens):
            batches[-1].append(piece)
        else:
            batches.append([piece])
    return batches
