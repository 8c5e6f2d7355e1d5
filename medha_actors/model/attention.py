"""Attention of one step: which rows attend to what, and who computes it.

A step's rows are grouped into runs of spans that live in the same KV groups. A run that one group holds alone is
attended to here; a shared run (paper, 3.3: KVP) is attended to piece by piece and merged through the exchange.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from medha_actors.messages import Span
from medha_actors.model.kv_pool import KvPool
from medha_actors.model.merge import merge_packed, pack


class Exchange(Protocol):
    """Swaps partial attention between KV groups."""

    def all_gather(self, groups: tuple[int, ...], partial: Tensor) -> list[Tensor]:
        """Give this group's float32 [rows, heads, head_dim + 1]; get those of all `groups`, in that order."""
        ...


@dataclass(slots=True)
class Piece:
    """One span's rows and the keys they may see in this group."""

    first: int  # row in the step
    rows: int
    cached: int  # tokens in this group's piece before the span; all rows see them
    writes: bool  # the span's own keys follow the cached ones, causal among themselves
    table: Tensor  # page numbers of the piece

    @property
    def stop(self) -> int:
        return self.first + self.rows


@dataclass(slots=True)
class Run:
    """Consecutive pieces in the same groups, prepared for the kernels. `groups` is empty where one group has all."""

    groups: tuple[int, ...]
    first: int
    stop: int
    chunks: list[object] = field(default_factory=list)
    decodes: list[object] = field(default_factory=list)


class Kernels(Protocol):
    """Attention over pieces of the pool on one kind of device."""

    def prepare(self, pieces: Sequence[Piece], partial: bool) -> tuple[list[object], list[object]]:
        """Per-step work that all layers share: (chunks, batches of single rows). Empty pieces are left out."""
        ...

    def prefill(self, layer: int, chunk: object, q: Tensor, kv: Tensor, out: Tensor, lse: Tensor | None) -> None:
        """Attend for one chunk's rows and store into the step's out [rows, heads, head_dim] and lse [rows, heads]."""
        ...

    def decode(self, layer: int, batch: object, q: Tensor, out: Tensor, lse: Tensor | None) -> None:
        """The same for a batch of single rows, whose own keys are already in the pool."""
        ...


class StepAttention:
    """The attention of one step, built once and called for every layer."""

    def __init__(
        self, kernels: Kernels, pool: KvPool, spans: Sequence[Span], tables: Sequence[Tensor], exchange: Exchange | None
    ) -> None:
        self.kernels = kernels
        self.pool = pool
        self.exchange = exchange
        self.pieces = _pieces(spans, tables)
        self.written, self.slots = _writes(pool, self.pieces)
        self.runs = self._runs(spans)

    def _runs(self, spans: Sequence[Span]) -> list[Run]:
        runs: list[Run] = []
        start = 0
        for index in range(len(spans) + 1):
            if index < len(spans) and _groups(spans[index]) == _groups(spans[start]):
                continue
            if index > start:
                mine = self.pieces[start:index]
                groups = _groups(spans[start])
                chunks, decodes = self.kernels.prepare(mine, bool(groups))
                runs.append(Run(groups, mine[0].first, mine[-1].stop, chunks, decodes))
            start = index
        return runs

    def __call__(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        """q [rows, heads, head_dim], kv [rows, 2 * kv_heads, head_dim] -> [rows, heads, head_dim]."""
        if self.slots is not None:
            self.pool.write(layer, self.slots, kv if self.written is None else kv[self.written])
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        for run in self.runs:
            if run.groups:
                self._shared(layer, run, q, kv, out)
                continue
            for chunk in run.chunks:
                self.kernels.prefill(layer, chunk, q, kv, out, None)
            for batch in run.decodes:
                self.kernels.decode(layer, batch, q, out, None)
        return out

    def _shared(self, layer: int, run: Run, q: Tensor, kv: Tensor, out: Tensor) -> None:
        assert self.exchange is not None, "a span with several groups needs an exchange"
        rows = slice(run.first, run.stop)
        out[rows] = 0  # rows that see nothing here stay so, with an LSE of -inf
        lse = torch.full(out.shape[:2], -torch.inf, dtype=torch.float32, device=out.device)
        for chunk in run.chunks:
            self.kernels.prefill(layer, chunk, q, kv, out, lse)
        for batch in run.decodes:
            self.kernels.decode(layer, batch, q, out, lse)
        partial = pack(out[rows], lse[rows])
        out[rows] = merge_packed(self.exchange.all_gather(run.groups, partial)).to(out.dtype)


def _groups(span: Span) -> tuple[int, ...]:
    return span.groups if len(span.groups) > 1 else ()


def _pieces(spans: Sequence[Span], tables: Sequence[Tensor]) -> list[Piece]:
    pieces, first = [], 0
    for span, table in zip(spans, tables, strict=True):
        pieces.append(Piece(first, span.stop - span.start, span.piece_tokens, span.writes, table))
        first = pieces[-1].stop
    return pieces


def _writes(pool: KvPool, pieces: Sequence[Piece]) -> tuple[Tensor | None, Tensor | None]:
    """Rows to store (None: all) and the pool rows they go to (None: nothing to store)."""
    tables, slots, rows = [], [], []
    for piece in pieces:
        if not piece.writes:
            continue
        where = torch.arange(piece.cached, piece.cached + piece.rows)
        tables.append(piece.table[where // pool.page_tokens])
        slots.append(where % pool.page_tokens)
        rows.append(torch.arange(piece.first, piece.stop))
    if not tables:
        return None, None
    device = pool.data.device
    places = pool.rows_of(torch.cat(tables).to(device), torch.cat(slots).to(device))
    if len(tables) == len(pieces):
        return None, places
    return torch.cat(rows).to(device), places
