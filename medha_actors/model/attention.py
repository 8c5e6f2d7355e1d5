"""Attention of one step on torch's tensors.

What computes it is an entry of backend.ATTENTIONS. Rows that this KV group holds alone are done
then; those that several groups share (paper, 3.3: KVP) are merged through the exchange.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from medha_actors.model.kv_pool import KvPool, Layout
from medha_actors.model.merge import Exchange, merge_shared
from medha_actors.model.step_plan import StepPlan

Prepared = TypeVar("Prepared")


class Attention(ABC, Generic[Prepared]):
    """Attention over paged keys and values on one kind of device."""

    layout: ClassVar[Layout]  # of a page in the pool

    def __init__(self, pool: KvPool) -> None:
        self.pool = pool

    @classmethod
    @abstractmethod
    def obstacle(
        cls, device: torch.device, dtype: torch.dtype, page_tokens: int
    ) -> str | None:
        """What it needs and does not find ("needs ..."); None: it works here."""

    @abstractmethod
    def prepare(self, plan: StepPlan) -> Prepared:
        """The work on a step that all layers share."""

    @abstractmethod
    def attend(
        self,
        layer: int,
        prepared: Prepared,
        q: Tensor,
        kv: Tensor,
        out: Tensor,
        lse: Tensor | None,
    ) -> None:
        """Store the step's attention over this group's pool into `out` [rows, heads, head_dim] and
        its log-sum-exp into `lse` (float32 [rows, heads]; None: nobody asks).

        q [rows, heads, head_dim]; kv [rows, 2 * kv_heads, head_dim] are the rows' own keys and
        values, which are in the pool already where this group stores them. Rows that see nothing
        here are left as they are.
        """


class StepAttention:
    """The attention of one step, built once and called for every layer."""

    def __init__(
        self, attention: Attention[Any], plan: StepPlan, exchange: Exchange | None
    ) -> None:
        self.attention = attention
        self.pool = attention.pool
        self.plan = plan
        self.exchange = exchange
        self.written, self.places = _writes(self.pool, plan)
        self.prepared = attention.prepare(plan)

    def __call__(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        """q [rows, heads, head_dim], kv [rows, 2 * kv_heads, head_dim] -> [rows, heads,
        head_dim]."""
        if self.places is not None:
            self.pool.write(
                layer, self.places, kv if self.written is None else kv[self.written]
            )
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        lse = None
        if self.plan.shared:  # rows that see nothing here keep zeros and an LSE of -inf
            lse = torch.full(
                out.shape[:2], -torch.inf, dtype=torch.float32, device=out.device
            )
            for run in self.plan.shared:
                out[run.rows] = 0
        self.attention.attend(layer, self.prepared, q, kv, out, lse)
        if lse is not None:
            merge_shared(self.plan, self.exchange, out, lse)
        return out


def _writes(pool: KvPool, plan: StepPlan) -> tuple[Tensor | None, Tensor | None]:
    """Rows to store (None: all) and the pool rows they go to (None: nothing to store)."""
    rows = np.flatnonzero(plan.slots >= 0)
    if not len(rows):
        return None, None
    device = pool.data.device
    places = pool.rows_of(torch.from_numpy(plan.slots[rows])).to(device)
    if len(rows) == plan.rows:
        return None, places
    return torch.from_numpy(rows).to(device), places
