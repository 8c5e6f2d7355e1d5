"""Attention through torch's fused operators, on a CPU and on CUDA; K and V pages are gathered
before each call.

A chunk attends to the cached part (no mask) and to itself (causal) and merges the two. The query
heads that share a key head are folded into extra rows, so that keys and values are read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from medha_actors.model.attention import Attention
from medha_actors.model.kv_pool import KvPool, Layout
from medha_actors.model.merge import merge
from medha_actors.model.step_plan import SpanRows, StepPlan

_ops = torch.ops.aten


@dataclass(slots=True)
class ChunkRows:
    """A prefill chunk. `head_pages` is None where nothing is cached."""

    rows: slice
    cached: int
    writes: bool
    head_pages: Tensor | None


@dataclass(slots=True)
class DecodeRows:
    """Single rows with similar context lengths, padded to the longest."""

    rows: Tensor
    head_pages: Tensor  # [2, batch, kv_heads, pages]
    mask: Tensor  # [batch, 1, 1, pages * page_tokens], 0 or -inf


class Work(NamedTuple):
    """All rows of a step that see something in this group."""

    chunks: list[ChunkRows]
    decodes: list[DecodeRows]


class SdpaAttention(Attention[Work]):
    """See Attention."""

    layout: ClassVar[Layout] = "head_major"

    def __init__(self, pool: KvPool) -> None:
        super().__init__(pool)
        self.device = pool.data.device

    @classmethod
    def obstacle(
        cls, device: torch.device, dtype: torch.dtype, page_tokens: int
    ) -> str | None:
        """It works everywhere."""
        return None

    def prepare(self, plan: StepPlan) -> Work:
        chunks = []
        decodes = []
        for run in plan.runs:
            seeing = [span for span in run.spans if span.tokens]
            chunks += [self._chunk(span) for span in seeing if span.rows > 1]
            single = [span for span in seeing if span.rows == 1]
            decodes += [
                self._batch(alike) for alike in _similar(single, self.pool.page_tokens)
            ]
        return Work(chunks, decodes)

    def _chunk(self, span: SpanRows) -> ChunkRows:
        pages = -(-span.cached // self.pool.page_tokens)
        head_pages = None
        if pages:
            table = torch.from_numpy(span.pages[:pages]).to(self.device, torch.int64)
            head_pages = self.pool.head_pages_of(table)
        return ChunkRows(
            slice(span.first, span.stop), span.cached, span.writes, head_pages
        )

    def _batch(self, spans: Sequence[SpanRows]) -> DecodeRows:
        size = self.pool.page_tokens
        lengths = torch.tensor([span.tokens for span in spans])
        longest = -(-int(lengths.max()) // size)
        tables = torch.zeros(len(spans), longest, dtype=torch.int64)
        for row, span in enumerate(spans):
            pages = -(-span.tokens // size)
            tables[row, :pages] = torch.from_numpy(span.pages[:pages])
            tables[row, pages:] = int(
                span.pages[0]
            )  # not another's, which may hold NaN
        hidden = (torch.arange(longest * size) >= lengths[:, None]).to(self.device)
        mask = torch.zeros(hidden.shape, dtype=self.pool.data.dtype, device=self.device)
        mask.masked_fill_(hidden, -torch.inf)
        rows = torch.tensor([span.first for span in spans], device=self.device)
        head_pages = self.pool.head_pages_of(tables.to(self.device))
        return DecodeRows(rows, head_pages, mask[:, None, None])

    def attend(
        self,
        layer: int,
        prepared: Work,
        q: Tensor,
        kv: Tensor,
        out: Tensor,
        lse: Tensor | None,
    ) -> None:
        for chunk in prepared.chunks:
            self._prefill(layer, chunk, q, kv, out, lse)
        for batch in prepared.decodes:
            self._decode(layer, batch, q, out, lse)

    def _prefill(
        self,
        layer: int,
        chunk: ChunkRows,
        q: Tensor,
        kv: Tensor,
        out: Tensor,
        lse: Tensor | None,
    ) -> None:
        kv_heads = self.pool.kv_heads
        rows = chunk.rows
        own_q = q[rows].transpose(0, 1).contiguous()  # [heads, rows, head_dim]
        outs = []
        lses = []
        if chunk.head_pages is not None:
            keys, values = self.pool.gather(layer, chunk.head_pages)[
                :, None, :, : chunk.cached
            ]
            folded = own_q.view(1, kv_heads, -1, own_q.shape[-1])
            partial, partial_lse = fused(folded, keys, values, causal=False)
            outs.append(partial.reshape(own_q.shape))
            lses.append(partial_lse.reshape(own_q.shape[:2]))
        if chunk.writes:
            own = kv[rows].transpose(0, 1)[None]
            own_keys = own[:, :kv_heads]
            own_values = own[:, kv_heads:]
            partial, partial_lse = fused(own_q[None], own_keys, own_values, causal=True)
            outs.append(partial[0])
            lses.append(partial_lse[0])
        both, both_lse = merge(outs, lses) if len(outs) > 1 else (outs[0], lses[0])
        out[rows] = both.transpose(0, 1)
        if lse is not None:
            lse[rows] = both_lse.transpose(0, 1)

    def _decode(
        self, layer: int, batch: DecodeRows, q: Tensor, out: Tensor, lse: Tensor | None
    ) -> None:
        keys, values = self.pool.gather(layer, batch.head_pages)
        own_q = q.index_select(0, batch.rows)
        folded = own_q.view(len(batch.rows), self.pool.kv_heads, -1, own_q.shape[-1])
        done, done_lse = masked(folded, keys, values, batch.mask)
        out.index_copy_(0, batch.rows, done.reshape(own_q.shape))
        if lse is not None:
            lse.index_copy_(0, batch.rows, done_lse.reshape(own_q.shape[:2]))


def _similar(spans: Sequence[SpanRows], page_tokens: int) -> list[list[SpanRows]]:
    """Groups in which the longest context is at most twice the shortest (or all are short)."""
    batches: list[list[SpanRows]] = []
    for span in sorted(spans, key=lambda span: span.cached):
        if batches and span.cached <= max(2 * batches[-1][0].cached, 4 * page_tokens):
            batches[-1].append(span)
        else:
            batches.append([span])
    return batches


def fused(
    q: Tensor, keys: Tensor, values: Tensor, causal: bool
) -> tuple[Tensor, Tensor]:
    """Attention of q [1, heads, rows, dim] over K, V [1, kv_heads, tokens, dim], tokens > 0: out,
    LSE [1, heads, rows].

    Causal only with as many rows as tokens.
    """
    if q.device.type == "cpu":
        on_cpu: tuple[Tensor, Tensor] = (
            _ops._scaled_dot_product_flash_attention_for_cpu(
                q, keys, values, is_causal=causal
            )
        )
        return on_cpu
    # only the chunk's own keys: few, so that copying them costs little
    if q.shape[1] != keys.shape[1]:
        share = q.shape[1] // keys.shape[1]
        keys = keys.repeat_interleave(share, 1)
        values = values.repeat_interleave(share, 1)
    if q.dtype == torch.float32:
        found = _ops._scaled_dot_product_efficient_attention(
            q, keys, values, None, True, is_causal=causal
        )
    else:
        found = _ops._scaled_dot_product_flash_attention(
            q, keys, values, is_causal=causal
        )
    return found[0], found[1][..., : q.shape[2]]  # the efficient kernel pads the LSE


def masked(
    q: Tensor, keys: Tensor, values: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention of q [batch, heads, rows, dim] with an additive mask that leaves each row something
    to see."""
    # in 16 bits that operator is ten times slower for few rows
    if q.device.type == "cpu" and q.dtype == torch.float32:
        on_cpu: tuple[Tensor, Tensor] = (
            _ops._scaled_dot_product_flash_attention_for_cpu(
                q, keys, values, attn_mask=mask
            )
        )
        return on_cpu
    return plain_masked(q, keys, values, mask)


def plain_masked(
    q: Tensor, keys: Tensor, values: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor]:
    """The same as two matrix products; scores and softmax in float32."""
    scores = (q @ keys.transpose(-1, -2)).float().mul_(q.shape[-1] ** -0.5).add_(mask)
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp_().to(values.dtype) @ values, lse
