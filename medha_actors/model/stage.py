"""One pipeline stage of the model: some layers, their slice of the KV cache, and the state it needs of each request."""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import NamedTuple

import torch
from torch import Tensor

from medha_actors.config import ModelLoadingConfig
from medha_actors.errors import ModelError
from medha_actors.messages import PromptLogprobs, SampledToken, Sequence, Span, StepMessage
from medha_actors.model.attention import Exchange, Kernels, StepAttention
from medha_actors.model.attention_cpu import CpuAttention
from medha_actors.model.kv_pool import KvPool
from medha_actors.model.layers import Linear, Loader, Mlp, RmsNorm
from medha_actors.model.rope import Rotary, rotate
from medha_actors.model.sampler import Sampler
from medha_actors.model.spec import ModelSpec
from medha_actors.model.weights import open_weights


class StageOutput(NamedTuple):
    """Hidden states [rows, hidden] for the next stage, or from the last stage what was sampled."""

    hidden: Tensor | None
    tokens: tuple[SampledToken, ...] = ()
    prompt_logprobs: tuple[PromptLogprobs, ...] = ()


class Step(NamedTuple):
    """What every layer needs of a step."""

    cos: Tensor
    sin: Tensor
    attention: StepAttention


class Layer:
    """One transformer layer."""

    def __init__(self, loader: Loader, number: int, local: int) -> None:
        spec, prefix = loader.spec, f"model.layers.{number}"
        names = [f"{prefix}.self_attn.{name}_proj" for name in "qkv"]
        self.local = local  # its place in the stage's KV pool
        self.heads, self.kv_heads, self.head_dim = spec.heads, spec.kv_heads, spec.head_dim
        self.attention_norm: RmsNorm = loader.norm(f"{prefix}.input_layernorm")
        self.qkv: Linear = loader.linear(*names, bias=spec.qkv_bias)
        self.q_norm = loader.norm(f"{prefix}.self_attn.q_norm") if spec.qk_norm else None
        self.k_norm = loader.norm(f"{prefix}.self_attn.k_norm") if spec.qk_norm else None
        self.out: Linear = loader.linear(f"{prefix}.self_attn.o_proj", bias=spec.o_bias)
        self.mlp_norm: RmsNorm = loader.norm(f"{prefix}.post_attention_layernorm")
        self.mlp: Mlp = loader.mlp(number)

    def __call__(self, x: Tensor, step: Step) -> Tensor:
        x = x + self.attention(self.attention_norm(x), step)
        return x + self.mlp(self.mlp_norm(x))

    def attention(self, x: Tensor, step: Step) -> Tensor:
        turned = self.heads + self.kv_heads
        qkv = self.qkv(x).view(len(x), turned + self.kv_heads, self.head_dim)
        if self.q_norm and self.k_norm:
            qkv[:, : self.heads] = self.q_norm(qkv[:, : self.heads])
            qkv[:, self.heads : turned] = self.k_norm(qkv[:, self.heads : turned])
        qkv[:, :turned] = rotate(qkv[:, :turned], step.cos, step.sin)
        out = step.attention(self.local, qkv[:, : self.heads], qkv[:, self.heads :])
        return self.out(out.view(len(x), -1))


class Stage:
    """Layers [i, j) of the model; the first stage embeds, the last one samples.

    `stages` is (this stage, number of stages). Steps must be given in the order the scheduler made them: they carry
    changes (new pages, opened and closed requests) to the state replicated here.
    """

    def __init__(
        self,
        spec: ModelSpec,
        config: ModelLoadingConfig,
        layers: tuple[int, int],
        stages: tuple[int, int],
        group: int,
        pages: int,
        page_tokens: int,
        device: torch.device | str,
        dtype: torch.dtype,
        threads: int = 1,
        attention: str = "auto",
    ) -> None:
        self.spec, self.group, self.dtype = spec, group, dtype
        self.device = torch.device(device)
        self.is_first, self.is_last = stages[0] == 0, stages[0] == stages[1] - 1
        if self.device.type == "cpu":
            torch.set_num_threads(threads)
        with torch.inference_mode():
            loader = Loader(open_weights(spec, config), spec, self.device, dtype)
            self.embedding = loader.tensor("model.embed_tokens.weight") if self.is_first else None
            self.layers = [Layer(loader, number, number - layers[0]) for number in range(*layers)]
            self.norm = loader.norm("model.norm") if self.is_last else None
            self.head = loader.head() if self.is_last else None
            self.rotary = Rotary(spec.rope, spec.head_dim, spec.max_positions, self.device)
            shape = (len(self.layers), pages, page_tokens, spec.kv_heads, spec.head_dim)
            self.pool = KvPool(*shape, self.device, dtype)
        self.kernels: Kernels = _kernels(attention, self.pool, spec.heads)
        self.sampler = Sampler(spec.vocabulary)
        self.tables: dict[str, list[int]] = {}

    @torch.inference_mode()
    def step(self, message: StepMessage, hidden: Tensor | None, exchange: Exchange | None) -> StageOutput:
        """Run one batch. `hidden` [rows, hidden] comes from the stage before; None in the first stage."""
        self._follow(message)
        spans = message.spans
        if not spans:
            return StageOutput(hidden)
        x = self._embed(spans) if hidden is None else hidden
        positions = torch.cat([torch.arange(span.start, span.stop) for span in spans]).to(self.device)
        cos, sin = self.rotary(positions, self.dtype)
        tables = [torch.tensor(self.tables[span.request_id], dtype=torch.int64) for span in spans]
        step = Step(cos, sin, StepAttention(self.kernels, self.pool, spans, tables, exchange))
        for layer in self.layers:
            x = layer(x, step)
        if not self.is_last:
            return StageOutput(x)
        return StageOutput(None, *self.sampler(spans, lambda rows: self._logits(x, rows)))

    def _follow(self, message: StepMessage) -> None:
        """Apply the message's changes to the replicated state."""
        for request_id in message.closed:
            self.tables.pop(request_id, None)
            self.sampler.close(request_id)
        for sequence in message.opened:
            self.tables[sequence.request_id] = []
            self.sampler.open(sequence)
        for span in message.spans:
            self.tables[span.request_id].extend(span.new_pages)

    def _embed(self, spans: Items[Span]) -> Tensor:
        assert self.embedding is not None, "only the first stage may be given no hidden states"
        packed = bytearray(b"".join([span.token_ids for span in spans]))
        token_ids = torch.frombuffer(packed, dtype=torch.int32).to(self.device)
        return self.embedding.index_select(0, token_ids)

    def _logits(self, x: Tensor, rows: Items[int]) -> Tensor:
        """Logits, float32 [rows, vocabulary], of some of the step's rows."""
        assert self.norm is not None
        assert self.head is not None
        chosen = x if len(rows) == len(x) else x[torch.tensor(rows, device=x.device)]
        return self.head(self.norm(chosen)).float()

    def warm_up(self) -> None:
        """Run a few steps of typical shapes, so that the first request does not pay for compilation or allocation."""
        for rows in (64, 1):
            pages = -(-rows // self.pool.page_tokens)
            if pages > self.pool.pages:
                continue
            span = Span("warm-up", 0, rows, bytes(4 * rows), 0, 0, tuple(range(pages)))
            opened = (Sequence("warm-up", None),)
            hidden = (
                None if self.is_first else torch.zeros(rows, self.spec.hidden, dtype=self.dtype, device=self.device)
            )
            self.step(StepMessage(0, (span,), opened, ("warm-up",)), hidden, None)
        self._follow(StepMessage(0, (), (), ("warm-up",)))


def _kernels(attention: str, pool: KvPool, heads: int) -> Kernels:
    if pool.data.device.type == "cpu":
        return CpuAttention(pool, heads)
    raise ModelError(f"attention {attention} on {pool.data.device.type} is not there yet")
