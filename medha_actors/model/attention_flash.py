"""Attention through the flash-attn package (CUDA): it reads keys and values in their pages, nothing
is gathered.

Its pool is token-major within a page, and its pages must be multiples of 256 tokens.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from medha_actors.model.attention import Attention
from medha_actors.model.kv_pool import KvPool, Layout
from medha_actors.model.step_plan import SpanRows, StepPlan

_PAGE_MULTIPLE = 256


@dataclass(slots=True)
class PagedRows:
    """Rows that attend to paged contexts, in one call: a chunk of one request, or single rows of
    several."""

    rows: slice | Tensor
    batch: int
    lengths: Tensor  # int32 [batch]: tokens of each context, the rows' own included
    tables: Tensor  # int32 [batch, pages]
    causal: bool  # the rows are the last ones of their context


class FlashAttention(Attention[list[PagedRows]]):
    """See Attention; keys and values are read from the pool alone."""

    layout: ClassVar[Layout] = "token_major"

    def __init__(self, pool: KvPool) -> None:
        super().__init__(pool)
        self.call = _load()

    @classmethod
    def obstacle(
        cls, device: torch.device, dtype: torch.dtype, page_tokens: int
    ) -> str | None:
        """The package is imported only where it could be used."""
        if device.type != "cuda" or dtype == torch.float32:
            return f"needs CUDA and a 16-bit dtype, not {device.type} and {dtype}"
        if page_tokens % _PAGE_MULTIPLE:
            return f"needs kv_cache.page_tokens to be a multiple of {_PAGE_MULTIPLE}"
        try:
            _load()
        except (
            ImportError,
            AttributeError,
        ) as error:  # flash-attn 4 is a package without it
            return f"needs the package flash-attn, which cannot be imported: {error}"
        return None

    def prepare(self, plan: StepPlan) -> list[PagedRows]:
        calls = []
        for run in plan.runs:
            seeing = [span for span in run.spans if span.tokens]
            for span in seeing:
                if span.rows > 1:
                    calls.append(self._paged(slice(span.first, span.stop), [span]))
            single = [span for span in seeing if span.rows == 1]
            if single:
                rows = torch.tensor(
                    [span.first for span in single], device=self.pool.data.device
                )
                calls.append(self._paged(rows, single))
        return calls

    def _paged(self, rows: slice | Tensor, spans: Sequence[SpanRows]) -> PagedRows:
        device = self.pool.data.device
        lengths = [span.tokens for span in spans]
        longest = -(-max(lengths) // self.pool.page_tokens)
        tables = torch.zeros(len(spans), longest, dtype=torch.int32)
        for row, span in enumerate(spans):
            pages = -(-span.tokens // self.pool.page_tokens)
            tables[row, :pages] = torch.from_numpy(span.pages[:pages])
        counts = torch.tensor(lengths, dtype=torch.int32, device=device)
        causal = spans[0].writes and spans[0].rows > 1
        return PagedRows(rows, len(spans), counts, tables.to(device), causal)

    def attend(
        self,
        layer: int,
        prepared: list[PagedRows],
        q: Tensor,
        kv: Tensor,
        out: Tensor,
        lse: Tensor | None,
    ) -> None:
        heads, head_dim = q.shape[1:]
        for paged in prepared:
            done, done_lse = self.call(
                q[paged.rows].view(paged.batch, -1, heads, head_dim),
                self.pool.data[layer, 0],
                self.pool.data[layer, 1],
                cache_seqlens=paged.lengths,
                block_table=paged.tables,
                causal=paged.causal,
                return_softmax_lse=True,
            )
            out[paged.rows] = done.view(-1, heads, head_dim)
            if lse is not None:
                lse[paged.rows] = done_lse.transpose(1, 2).reshape(-1, heads)


def _load() -> Callable[..., Any]:
    call: Callable[..., Any] = importlib.import_module(
        "flash_attn"
    ).flash_attn_with_kvcache
    return call
