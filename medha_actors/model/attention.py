"""Attention of one step: which rows attend to what, and who computes it.

A step's rows are grouped into runs of spans that live in the same KV groups. A run that one group
holds alone is attended to here; a shared run (paper, 3.3: KVP) is attended to piece by piece and
merged through the exchange.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from medha_actors.messages import Span
from medha_actors.model.kv_pool import KvPool
from medha_actors.model.merge import merge_packed, pack


class Exchange(ABC):
    """Swaps partial attention between KV groups."""

    @abstractmethod
    def all_gather(self, groups: tuple[int, ...], partial: Tensor) -> list[Tensor]:
        """Give this group's float32 [rows, heads, head_dim + 1]; get those of all `groups`, in that
        order."""

    def merge(self, groups: tuple[int, ...], out: Tensor, lse: Tensor) -> None:
        """Replace this group's `out` [rows, heads, head_dim] (lse [rows, heads]) by the attention
        over all pieces."""
        out.copy_(merge_packed(self.all_gather(groups, pack(out, lse))))


class Piece(NamedTuple):
    """One span's rows and the keys they may see in this group."""

    first: int  # row in the step
    stop: int
    cached: int  # tokens in this group's piece before the span; all rows see them
    writes: bool  # the span's own keys follow the cached ones, causal among themselves
    table: Tensor  # int64, on the CPU: page numbers of the piece

    @property
    def rows(self) -> int:
        return self.stop - self.first


class Run(NamedTuple):
    """Consecutive rows in the same groups, prepared for the kernels. `groups` is empty where one
    group has all."""

    groups: tuple[int, ...]
    rows: slice
    chunks: list[Any]
    decodes: list[Any]


class Kernels(Protocol):
    """Attention over pieces of the pool on one kind of device."""

    def prepare(self, pieces: Sequence[Piece]) -> tuple[list[Any], list[Any]]:
        """Per-step work that all layers share: (chunks, batches of single rows). Empty pieces are
        left out."""
        ...

    def prefill(
        self, layer: int, chunk: Any, q: Tensor, kv: Tensor, out: Tensor, lse: Tensor | None
    ) -> None:
        """Attend for one chunk's rows and store into the step's out [rows, heads, head_dim] and lse
        [rows, heads]."""
        ...

    def decode(self, layer: int, batch: Any, q: Tensor, out: Tensor, lse: Tensor | None) -> None:
        """The same for a batch of single rows, whose own keys are already in the pool."""
        ...


def pieces_of(spans: Sequence[Span], tables: Sequence[Tensor]) -> list[Piece]:
    """The rows of each span, and what they see."""
    ends = itertools.accumulate((span.stop - span.start for span in spans), initial=0)
    return [
        Piece(first, stop, span.piece_tokens, span.writes, table)
        for (first, stop), span, table in zip(itertools.pairwise(ends), spans, tables, strict=True)
    ]


def runs_of(spans: Sequence[Span]) -> list[tuple[tuple[int, ...], int, int]]:
    """Consecutive spans with equal groups: (groups, first span, stop). One group alone counts as
    none."""
    runs = []
    start = 0
    for groups, same in itertools.groupby(
        spans, lambda span: span.groups if len(span.groups) > 1 else ()
    ):
        stop = start + len(list(same))
        runs.append((groups, start, stop))
        start = stop
    return runs


def share(groups: tuple[int, ...], out: Tensor, lse: Tensor, exchange: Exchange | None) -> Tensor:
    """Attention over all groups' pieces from the one over this group's: float32 [rows, heads,
    head_dim]."""
    assert exchange is not None, "a span with several groups needs an exchange"
    return merge_packed(exchange.all_gather(groups, pack(out, lse)))


class StepAttention:
    """The attention of one step, built once and called for every layer."""

    def __init__(
        self,
        kernels: Kernels,
        pool: KvPool,
        spans: Sequence[Span],
        tables: Sequence[Tensor],
        exchange: Exchange | None,
    ) -> None:
        self.kernels = kernels
        self.pool = pool
        self.exchange = exchange
        pieces = pieces_of(spans, tables)
        self.written, self.places = _writes(pool, pieces)
        self.runs = [
            Run(
                groups,
                slice(pieces[start].first, pieces[stop - 1].stop),
                *kernels.prepare(pieces[start:stop]),
            )
            for groups, start, stop in runs_of(spans)
        ]

    def __call__(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        """q [rows, heads, head_dim], kv [rows, 2 * kv_heads, head_dim] -> [rows, heads,
        head_dim]."""
        if self.places is not None:
            self.pool.write(layer, self.places, kv if self.written is None else kv[self.written])
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for run in self.runs:
            lse = None
            if run.groups:  # rows that see nothing here keep zeros and an LSE of -inf
                out[run.rows] = 0
                lse = torch.full(out.shape[:2], -torch.inf, dtype=torch.float32, device=out.device)
            for chunk in run.chunks:
                self.kernels.prefill(layer, chunk, q, kv, out, lse)
            for batch in run.decodes:
                self.kernels.decode(layer, batch, q, out, lse)
            if lse is not None:
                out[run.rows] = share(run.groups, out[run.rows], lse[run.rows], self.exchange).to(
                    out.dtype
                )
        return out


def _writes(pool: KvPool, pieces: Sequence[Piece]) -> tuple[Tensor | None, Tensor | None]:
    """Rows to store (None: all) and the pool rows they go to (None: nothing to store)."""
    pages = []
    slots = []
    rows = []
    for piece in pieces:
        if piece.writes:
            where = torch.arange(piece.cached, piece.cached + piece.rows)
            pages.append(piece.table[where // pool.page_tokens])
            slots.append(where % pool.page_tokens)
            rows.append(torch.arange(piece.first, piece.stop))
    if not rows:
        return None, None
    device = pool.data.device
    places = pool.rows_of(torch.cat(pages), torch.cat(slots)).to(device)
    return (None if len(rows) == len(pieces) else torch.cat(rows).to(device)), places
