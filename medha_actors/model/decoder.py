"""The layers of a stage on torch operators: runs on a CPU and on CUDA, in float32, bfloat16 and
float16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medha_actors.model.attention import Attention, StepAttention
from medha_actors.model.kv_pool import KvPool
from medha_actors.model.layers import Loader
from medha_actors.model.merge import Exchange
from medha_actors.model.rope import Rotary, rotate
from medha_actors.model.step_plan import StepPlan
from medha_actors.model.team import Team

TokenIds = NDArray[np.int32]


class Decoder(Protocol):
    """A stage's layers with their KV cache, and in the last stage the final norm and head."""

    dtype: torch.dtype  # of hidden states between layers
    embeds: bool  # whether the first stage's takes ids of tokens in the place of hidden states

    @property
    def name(self) -> str:
        """What computes, and how it attends: for logs, and to tell measurements apart."""
        ...

    def __call__(
        self,
        x: Tensor | TokenIds,
        plan: StepPlan,
        exchange: Exchange | None,
        team: Team,
    ) -> Tensor:
        """Run a step's rows [rows, hidden] (ids [rows], see `embeds`) through the layers, together
        with the other ranks of the team: all are given the same rows, and all get the same."""
        ...

    def prepare(self) -> None:
        """What can be done before the first step, in the thread that runs the steps."""
        ...

    def logits(self, x: Tensor) -> Tensor:
        """Float32 [rows, vocabulary] for the rows given; of a rank, its part of the vocabulary."""
        ...

    def clear(self, pages: Sequence[int]) -> None:
        """Write zeros into pages that get a new owner. A key that is hidden has the weight 0, but 0
        times the NaN that an earlier owner left there is NaN."""
        ...

    def fill(self, pages: int) -> None:
        """Write noise into the first pages of the KV cache, so that measurements read real
        memory."""
        ...

    def cells(self) -> list[Tensor]:
        """The KV cache itself, in tensors [layers or more, pages, the numbers of a page]."""
        ...


@runtime_checkable
class Resizable(Protocol):
    """A decoder on a device whose memory is measured when the weights are there."""

    def resize(self, pages: int) -> None:
        """A KV cache of so many pages; what was in the one before is lost, and so is what was
        captured of steps (the warm-up that follows captures it again)."""
        ...


class Step(NamedTuple):
    """What every layer needs of a step."""

    cos: Tensor
    sin: Tensor
    attention: StepAttention
    team: Team


class Layer:
    """One transformer layer; `local` is its place in the stage's KV pool."""

    def __init__(self, loader: Loader, number: int, local: int) -> None:
        spec = loader.spec
        prefix = f"model.layers.{number}"
        names = [f"{prefix}.self_attn.{name}_proj" for name in "qkv"]
        self.local = local
        self.heads = spec.heads
        self.kv_heads = spec.kv_heads
        self.head_dim = spec.head_dim
        self.attention_norm = loader.norm(f"{prefix}.input_layernorm")
        self.qkv = loader.linear(*names, bias=spec.qkv_bias)
        self.q_norm = (
            loader.norm(f"{prefix}.self_attn.q_norm") if spec.qk_norm else None
        )
        self.k_norm = (
            loader.norm(f"{prefix}.self_attn.k_norm") if spec.qk_norm else None
        )
        self.out = loader.linear(f"{prefix}.self_attn.o_proj", bias=spec.o_bias)
        self.mlp_norm = loader.norm(f"{prefix}.post_attention_layernorm")
        self.mlp = loader.mlp(number)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        x = x + step.team.total(self.attention(self.attention_norm(x), step))
        return x + step.team.total(self.mlp(self.mlp_norm(x)))

    def attention(self, x: Tensor, step: Step) -> Tensor:
        """Project, normalise (Qwen3), rotate, attend, project."""
        turned = self.heads + self.kv_heads
        qkv = self.qkv(x).view(len(x), turned + self.kv_heads, self.head_dim)
        if self.q_norm and self.k_norm:
            qkv[:, : self.heads] = self.q_norm(qkv[:, : self.heads])
            qkv[:, self.heads : turned] = self.k_norm(qkv[:, self.heads : turned])
        qkv[:, :turned] = rotate(qkv[:, :turned], step.cos, step.sin)
        out = step.attention(self.local, qkv[:, : self.heads], qkv[:, self.heads :])
        return self.out(out.view(len(x), -1))


class TorchDecoder:
    """See Decoder."""

    embeds = False

    def __init__(
        self,
        loader: Loader,
        layers: tuple[int, int],
        head: bool,
        pages: int,
        page_tokens: int,
        attention: type[Attention[Any]],
    ) -> None:
        spec = loader.spec
        self.device = loader.device
        self.dtype = loader.dtype
        self.name = f"torch {attention.__name__}"
        self._attends = attention
        self.pool = KvPool(
            layers[1] - layers[0],
            pages,
            page_tokens,
            spec.kv_heads,
            spec.head_dim,
            self.device,
            self.dtype,
            attention.layout,
        )
        self.attention = attention(self.pool)
        self.layers = [
            Layer(loader, number, number - layers[0]) for number in range(*layers)
        ]
        self.rotary = Rotary(spec.rope, spec.head_dim, spec.max_positions, self.device)
        self.norm = loader.norm("model.norm") if head else None
        self.head = loader.head() if head else None

    def __call__(
        self,
        x: Tensor | TokenIds,
        plan: StepPlan,
        exchange: Exchange | None,
        team: Team,
    ) -> Tensor:
        assert isinstance(x, Tensor), "ids are embedded before"
        positions = torch.from_numpy(plan.positions).to(self.device)
        attention = StepAttention(self.attention, plan, exchange)
        step = Step(*self.rotary(positions, self.dtype), attention, team)
        for layer in self.layers:
            x = layer(x, step)
        return x

    def prepare(self) -> None:
        pass

    def logits(self, x: Tensor) -> Tensor:
        assert self.norm is not None, "only the last stage has a head"
        assert self.head is not None
        return self.head(self.norm(x)).float()

    def resize(self, pages: int) -> None:
        old = self.pool
        self.pool = KvPool(
            len(self.layers),
            pages,
            old.page_tokens,
            old.kv_heads,
            old.head_dim,
            self.device,
            self.dtype,
            self._attends.layout,
        )
        self.attention = self._attends(self.pool)

    def clear(self, pages: Sequence[int]) -> None:
        self.pool.data.index_fill_(2, torch.tensor(pages, device=self.device), 0)

    def fill(self, pages: int) -> None:
        self.pool.data[:, :, :pages].normal_()

    def cells(self) -> list[Tensor]:
        return [self.pool.data.flatten(0, 1).flatten(2)]
