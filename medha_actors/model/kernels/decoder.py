"""The layers of a stage on the CPU kernels: a decoder like decoder.TorchDecoder, several times as
fast.

In bfloat16 the KV cache and the attention's operands are bfloat16; matrices that a GGUF file holds
in 4 to 8 bits stay so and are multiplied by activations in int8, as llama.cpp does, but for
queries, keys, values, down and the head, which get int16: they gain most for what they cost. All
other matrices are bfloat16, but for routers of experts, which are float32. In float32 nothing is
rounded: the result is that of the dequantised weights to the accuracy of float32 sums. Hidden
states are float32 in both. Measured on 1,024 tokens of English with SmolLM2-135M in Q4_1, against
float32: mean KL divergence of the next token 9e-4 and the same most likely token at 98.1% (a plain
bfloat16 model in torch: 1.2e-3, 96.3%; int16 everywhere: 5e-5, a quarter slower).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from medha_actors.model.decoder import TokenIds
from medha_actors.model.kernels import cpu
from medha_actors.model.kernels.cpu import (
    CpuLayers,
    Dimensions,
    ExpertWeights,
    LayerWeights,
)
from medha_actors.model.kernels.ir import fingerprint
from medha_actors.model.kernels.layouts import LANES, Activations
from medha_actors.model.kernels.matrix_tiles import PERMITTED
from medha_actors.model.kernels.pack import Packed, Stack, pack_blocks, pack_dense
from medha_actors.model.kernels.threads import ONE_THREAD, Threads
from medha_actors.model.layers import Loader
from medha_actors.model.merge import Exchange
from medha_actors.model.rope import Rotary
from medha_actors.model.step_plan import StepPlan
from medha_actors.model.team import Team
from medha_actors.model_spec import Experts, ModelSpec


def suits(spec: ModelSpec, dtype: torch.dtype, page_tokens: int) -> bool:
    """Whether this machine and this model are what the kernels are made for."""
    widths = [
        spec.hidden,
        spec.intermediate,
        spec.experts.shared if spec.experts else 0,
    ]
    return (
        dtype in (torch.float32, torch.bfloat16)
        and cpu.native()
        and cpu.fits(spec.head_dim, page_tokens, widths)
        and spec.heads * spec.head_dim % 32 == spec.vocabulary % 16 == 0
    )


class KernelDecoder:
    """See decoder.Decoder."""

    dtype = torch.float32
    name = f"CPU kernels {fingerprint()}{' with tile registers' if PERMITTED else ''}"
    embeds = False

    def __init__(
        self,
        loader: Loader,
        layers: tuple[int, int],
        head: bool,
        pages: int,
        page_tokens: int,
        threads: Threads = ONE_THREAD,
    ) -> None:
        spec = loader.spec
        self.threads = threads
        self._at_work = threads.own  # in the step under way
        self.loader = loader
        self.pages = pages
        self.exact = loader.dtype == torch.float32
        shape = Dimensions(
            spec.hidden,
            spec.intermediate,
            spec.heads,
            spec.kv_heads,
            spec.head_dim,
            spec.eps,
            spec.experts,
        )
        weights = [self._layer(number) for number in range(*layers)]
        self.layers = CpuLayers(
            shape, weights, pages, page_tokens, not self.exact, threads
        )
        self.rotary = Rotary(
            spec.rope, spec.head_dim, spec.max_positions, loader.device
        )
        self.norm = self._vector("model.norm.weight") if head else None
        # the head stays exact in bfloat16 too: few rows pass it, and its rounding is
        # what changes a draw most
        self.head = (
            self._matrix(
                "model.embed_tokens" if spec.tied_head else "lm_head",
                activations="int16",
            )
            if head
            else None
        )

    def __call__(
        self,
        x: Tensor | TokenIds,
        plan: StepPlan,
        exchange: Exchange | None,
        team: Team,
    ) -> Tensor:
        assert isinstance(x, Tensor), "ids are embedded before"
        x = x.to(torch.float32, copy=True)  # the layers work in place
        cos, sin = self.rotary(torch.from_numpy(plan.positions), torch.float32)
        shape = (plan.rows, -1)
        turns = (cos.view(shape).contiguous(), sin.view(shape).contiguous())
        self._at_work = self.threads.count if plan.alone else self.threads.own
        self.layers.step(x, turns, plan, exchange, team, self._at_work)
        return x

    def prepare(self) -> None:
        pass

    def logits(self, x: Tensor) -> Tensor:
        assert self.norm is not None, "only the last stage has a head"
        assert self.head is not None
        return self.layers.logits(x.contiguous(), self.norm, self.head, self._at_work)

    def clear(self, pages: Sequence[int]) -> None:
        for cells in self.cells():
            for page in pages:
                cells[:, page] = 0

    def fill(self, pages: int) -> None:
        for cells in self.cells():
            if cells.dtype == torch.int16:
                # even ones have steps of 0 (attention_rounding.py)
                cells[:, :pages].random_(-(2**14), 2**14).mul_(2)
            else:
                cells[:, :pages].normal_()

    def cells(self) -> list[Tensor]:
        dtype = torch.float32 if self.exact else torch.bfloat16
        if self.layers.form == "integers":
            dtype = torch.int16  # as bfloat16 some would be no numbers
        stores = (self.layers.keys, self.layers.values)
        shape = (len(self.layers.weights), self.pages, -1)
        return [torch.from_numpy(store).view(dtype).view(shape) for store in stores]

    def _layer(self, number: int) -> LayerWeights:
        spec = self.loader.spec
        prefix = f"model.layers.{number}"
        attention = f"{prefix}.self_attn"
        mlp = f"{prefix}.mlp"
        qkv = [f"{attention}.{n}_proj" for n in "qkv"]
        gate_up = [f"{mlp}.{n}_proj" for n in ("gate", "up")]
        stacks: tuple[Stack, Stack] = ((), ()) if spec.experts else self._mlp(mlp)
        return LayerWeights(
            qkv=self._matrix(*qkv, activations="int16"),
            out=self._matrix(f"{attention}.o_proj"),
            gate_up=stacks[0],
            down=stacks[1],
            attention_norm=self._vector(f"{prefix}.input_layernorm.weight"),
            mlp_norm=self._vector(f"{prefix}.post_attention_layernorm.weight"),
            qkv_bias=self._vector(*[f"{name}.bias" for name in qkv])
            if spec.qkv_bias
            else None,
            out_bias=self._vector(f"{attention}.o_proj.bias") if spec.o_bias else None,
            gate_up_bias=self._vector(*[f"{name}.bias" for name in gate_up])
            if spec.mlp_bias
            else None,
            down_bias=self._vector(f"{mlp}.down_proj.bias") if spec.mlp_bias else None,
            q_norm=self._vector(f"{attention}.q_norm.weight") if spec.qk_norm else None,
            k_norm=self._vector(f"{attention}.k_norm.weight") if spec.qk_norm else None,
            experts=self._experts(number, spec.experts) if spec.experts else None,
        )

    def _mlp(self, name: str) -> tuple[Stack, Stack]:
        """Gate and up side by side, and down."""
        gate_up = self._matrix(f"{name}.gate_proj", f"{name}.up_proj")
        return gate_up, self._matrix(f"{name}.down_proj", activations="int16")

    def _experts(self, number: int, experts: Experts) -> ExpertWeights:
        """All experts' matrices are packed as one, of which each gets its part."""
        prefix = f"model.layers.{number}.mlp"
        names = [f"{prefix}.experts.{expert}" for expert in range(experts.count)]
        gate, up = (self._of_each(names, part) for part in ("gate_proj", "up_proj"))
        down = self._of_each(names, "down_proj", "int16")
        mlps: list[tuple[Stack, Stack]] = [
            ((gate[i], up[i]), (down[i],)) for i in range(experts.count)
        ]
        if experts.shared:
            mlps.append(self._mlp(f"{prefix}.shared_expert"))
        router = self.loader.router(number)
        padding = torch.zeros(-len(router) % LANES, router.shape[1])
        return ExpertWeights((pack_dense(torch.cat((router, padding))),), mlps)

    def _of_each(
        self, experts: Sequence[str], matrix: str, activations: Activations = "int8"
    ) -> list[Packed]:
        """One matrix of each expert; in a file they are all of one kind."""
        names = [f"{expert}.{matrix}" for expert in experts]
        (whole,) = self._matrix(*names, activations=activations)
        outputs = whole.outputs // len(experts)
        return [
            whole.part(start, start + outputs)
            for start in range(0, whole.outputs, outputs)
        ]

    def _matrix(self, *names: str, activations: Activations = "int8") -> Stack:
        """One matrix, several names stacked along the output; neighbours of one kind are packed
        together, as they are stored."""
        stored = [self.loader.weights.blocks(f"{name}.weight") for name in names]
        kinds = [None if part is None else part[1] for part in stored]
        packed = []
        for kind, places in groupby(range(len(names)), kinds.__getitem__):
            if kind is None:
                dense = [
                    self.loader.tensor(f"{names[place]}.weight") for place in places
                ]
                packed.append(pack_dense(torch.cat(dense)))
                continue
            raw = torch.cat(
                [part[0] for part in map(stored.__getitem__, places) if part]
            )
            packed.append(
                pack_blocks(raw, kind, "float32" if self.exact else activations)
            )
        return tuple(packed)

    def _vector(self, *names: str) -> Tensor:
        return torch.cat(
            [self.loader.weights.tensor(name, torch.float32) for name in names]
        )
