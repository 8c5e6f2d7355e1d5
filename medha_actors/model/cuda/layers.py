"""A transformer layer on CUDA: ten launches, of which four are matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from medha_actors.model.cuda import fused
from medha_actors.model.cuda.step import DeviceStep, Ints, Work
from medha_actors.model.layers import Loader, Mlp
from medha_actors.model.team import Team


class PagedAttention(Protocol):
    """The attention of a step, in one call for all of its rows."""

    name: str

    def plan_work(self, sequences: Ints) -> Work:
        """What is to be done for sequences [n, 4] (see DeviceStep)."""
        ...

    def most_work(self, rows: int) -> tuple[int, int, int]:
        """Rows of work and of merges, and slots of partial results, that so many single rows take
        at most."""
        ...

    def partials(self, slots: int) -> Any:
        """Room for partial results."""
        ...

    def __call__(
        self,
        q: Tensor,
        pool: Tensor,
        step: DeviceStep,
        out: Tensor,
        lse: Tensor | None,
        partials: Any,
    ) -> None:
        """q [rows, heads, head_dim] over a layer's pool [2, pages, kv_heads, page_tokens,
        head_dim]: stores out [rows, heads * head_dim] and, where it is not None, lse float32
        [rows, heads]. Rows that see nothing get zeros and -inf."""
        ...


Merge = Callable[[Tensor, Tensor], None]
"""out [rows, heads, head_dim] and lse: this group's part becomes that of all groups."""


class LayerStep(NamedTuple):
    """What every layer needs of a step."""

    device: DeviceStep
    turns: Tensor  # float32 [2, rows, head_dim / 2]
    attend: PagedAttention
    partials: Any  # of the attention
    merge: Merge | None  # None: no row is shared with other groups
    team: Team


class CudaLayer:
    """See decoder.Layer, which it equals to the rounding of the sums."""

    def __init__(self, loader: Loader, number: int) -> None:
        spec = loader.spec
        prefix = f"model.layers.{number}"
        attention = f"{prefix}.self_attn"
        names = [f"{attention}.{name}_proj" for name in "qkv"]
        self.heads = spec.heads
        self.head_dim = spec.head_dim
        self.eps = spec.eps
        self.attention_norm = loader.tensor(f"{prefix}.input_layernorm.weight")
        self.qkv = loader.linear(*names, bias=spec.qkv_bias)
        self.norms = None
        if spec.qk_norm:
            weights = [
                loader.tensor(f"{attention}.{name}_norm.weight") for name in "qk"
            ]
            self.norms = (weights[0], weights[1], spec.eps)
        self.out = loader.linear(f"{attention}.o_proj", bias=spec.o_bias)
        self.mlp_norm = loader.tensor(f"{prefix}.post_attention_layernorm.weight")
        self.mlp = loader.mlp(number)

    def __call__(
        self, x: Tensor, delta: Tensor | None, pool: Tensor, step: LayerStep
    ) -> tuple[Tensor, Tensor]:
        """Two summands of the hidden states [rows, hidden] (None: there is one), and again."""
        x, normed = fused.add_norm(x, delta, self.attention_norm, self.eps)
        attended = step.team.total(self.attention(normed, pool, step))
        x, normed = fused.add_norm(x, attended, self.mlp_norm, self.eps)
        return x, step.team.total(self.feed_forward(normed))

    def attention(self, x: Tensor, pool: Tensor, step: LayerStep) -> Tensor:
        """Project, normalise (Qwen3), turn, store, attend, project."""
        rows = len(x)
        qkv = self.qkv(x).view(rows, -1, self.head_dim)
        fused.store_heads(
            qkv, step.turns, step.device.slots, pool, self.heads, self.norms
        )
        q = qkv[:, : self.heads]
        out = x.new_empty(rows, self.heads * self.head_dim)
        lse = None
        if step.merge is not None:
            lse = torch.empty(rows, self.heads, dtype=torch.float32, device=x.device)
        step.attend(q, pool, step.device, out, lse, step.partials)
        if step.merge is not None and lse is not None:
            step.merge(out.view(q.shape), lse)
        return self.out(out)

    def feed_forward(self, x: Tensor) -> Tensor:
        """The gated MLP; experts run as everywhere."""
        if isinstance(self.mlp, Mlp):
            return self.mlp.down(fused.gated(self.mlp.gate_up(x)))
        return self.mlp(x)
