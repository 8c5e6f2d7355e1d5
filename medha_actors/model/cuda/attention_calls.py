"""The paged attention of this package as the layers call it (see layers.PagedAttention)."""

from __future__ import annotations

import torch
from torch import Tensor

from medha_actors.model.cuda import attention, attention_work
from medha_actors.model.cuda.step import DeviceStep, Ints, Work
from medha_actors.model_spec import ModelSpec


class TritonCalls:
    """For one model on one device."""

    name = "triton"

    def __init__(
        self, spec: ModelSpec, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._shape = (spec.heads, spec.head_dim)
        self._device = device
        self._tiles = attention.tiles_for(
            spec.heads, spec.kv_heads, spec.head_dim, dtype, device
        )

    def plan_work(self, sequences: Ints) -> Work:
        return attention_work.plan_work(sequences, self._tiles)

    def most_work(self, rows: int) -> tuple[int, int, int]:
        return attention_work.most_work(rows, self._tiles)

    def partials(self, slots: int) -> attention.Partials:
        return attention.partials_for(slots, *self._shape, self._device)

    def __call__(
        self,
        q: Tensor,
        pool: Tensor,
        step: DeviceStep,
        out: Tensor,
        lse: Tensor | None,
        partials: attention.Partials,
    ) -> None:
        attention.paged_attention(q, pool, step, out, lse, partials)
