"""What a model is, without its weights: dimensions, details, and how its layers fall into stages.

Pure, so that whoever only needs the numbers (the controller, the twin of the load generator) does
not import torch. `medha_actors.model.spec` reads a ModelSpec from the files of a model.
"""

from __future__ import annotations

import itertools
from typing import Literal

import msgspec

from medha_actors.config import RopeScaling
from medha_actors.errors import ModelError

# The head runs only for rows that are sampled; of a nominal batch that is about one row in sixteen.
_HEAD_SHARE = 1 / 16
SUPPORTED = (
    "Llama, Mistral, Mixtral, SmolLM, Qwen2, Qwen2.5, Qwen3, Qwen2-MoE and Qwen3-MoE"
)

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn"]


class Rope(msgspec.Struct, frozen=True, kw_only=True):
    """RoPE parameters; names as in a Hugging Face config."""

    theta: float = 10_000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    original_max_positions: int = 2048
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None  # yarn; None: derived from factor
    mscale: float | None = None  # yarn
    mscale_all_dim: float | None = None  # yarn
    truncate: bool = True  # yarn
    # GGUF's rope_freqs: llama3 scaling worked out for each frequency
    divisors: tuple[float, ...] = ()


class Experts(msgspec.Struct, frozen=True, kw_only=True):
    """A mixture of experts in the place of every layer's MLP: a row takes the `used` that a router
    rates highest."""

    count: int
    used: int
    normalised: bool  # the weights of those that a row takes sum to 1
    # intermediate size of one more that every row takes (Qwen2-MoE); 0: none
    shared: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.used <= self.count:
            raise ValueError(
                f"no router can choose {self.used} of {self.count} experts"
            )

    def taken(self, rows: int) -> float:
        """How many so many rows take together, where every choice is as likely as any other."""
        left: float = (1 - self.used / self.count) ** rows
        return self.count * (1 - left)


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder of the Llama family, dense or a mixture of experts. Lengths in tokens."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int  # of the MLP, or of one expert
    vocabulary: int
    eps: float
    rope: Rope
    max_positions: int  # the longest sequence that is served
    # Of sliding-window attention. A sequence that fits in it is exact without one, so
    # none is longer: max_positions is never above it.
    window: int | None = None
    tied_head: bool  # the LM head is the embedding table
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # Qwen3: RMSNorm of every query and key head
    eos_ids: tuple[int, ...] = ()
    experts: Experts | None = None

    @property
    def attention_parameters(self) -> int:
        """Weights of one layer's projections."""
        return 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)

    @property
    def mlp_parameters(self) -> int:
        """Weights of one layer's MLP, or of one of its experts."""
        return 3 * self.hidden * self.intermediate

    @property
    def routing_parameters(self) -> int:
        """Weights of one layer's router, and of the expert that every row takes."""
        if self.experts is None:
            return 0
        return self.hidden * (self.experts.count + 3 * self.experts.shared)

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's linear maps: what it takes of memory."""
        return self._layer(self.experts.count if self.experts else 1)

    @property
    def active_layer_parameters(self) -> int:
        """Those by which a row is multiplied: what it takes of time."""
        return self._layer(self.experts.used if self.experts else 1)

    def _layer(self, mlps: int) -> int:
        return (
            self.attention_parameters
            + self.routing_parameters
            + mlps * self.mlp_parameters
        )

    @property
    def head_parameters(self) -> int:
        """Weights of the LM head, and of the embedding table."""
        return self.hidden * self.vocabulary

    @property
    def parameters(self) -> int:
        """Weights of the whole model, about."""
        tables = self.head_parameters * (1 if self.tied_head else 2)
        return self.layers * self.layer_parameters + tables

    @property
    def active_parameters(self) -> int:
        """Weights by which a sampled row is multiplied, about."""
        return self.layers * self.active_layer_parameters + self.head_parameters

    @property
    def pair_flops(self) -> float:
        """Operations of one (query, key) pair in one layer, all heads: two products of head_dim, 2
        each."""
        return 4.0 * self.heads * self.head_dim

    def prefill_flops(self, tokens: int) -> float:
        """Operations that a prompt needs: matrix products, causal attention, one row of the
        head."""
        linear = 2.0 * self.layers * self.active_layer_parameters * tokens
        attention = self.layers * self.pair_flops * tokens * (tokens + 1) / 2
        return linear + 2.0 * self.head_parameters + attention


def rescale(spec: ModelSpec, asked: RopeScaling) -> ModelSpec:
    """The configured RoPE scaling in place of the model's own."""
    original = (
        asked.original_max_position_embeddings or spec.rope.original_max_positions
    )
    given = {}
    for name in ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"):
        value = getattr(asked, name)
        if value is not None:
            given[name] = value
    rope = Rope(
        theta=spec.rope.theta,
        kind=asked.rope_type,
        factor=asked.factor,
        original_max_positions=original,
        attention_factor=asked.attention_factor,
        **given,
    )
    positions = max(int(original * asked.factor), 1)
    if spec.window is not None:
        positions = min(positions, spec.window)
    return msgspec.structs.replace(spec, rope=rope, max_positions=positions)


DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def kv_bytes_per_token(spec: ModelSpec, layers: tuple[int, int], dtype: str) -> int:
    """Bytes of keys and values of one token in a stage that holds these layers."""
    return (
        2 * (layers[1] - layers[0]) * spec.kv_heads * spec.head_dim * DTYPE_BYTES[dtype]
    )


def split_layers(spec: ModelSpec, stages: int) -> list[tuple[int, int]]:
    """Layer ranges [first, last) of the stages, balanced by what a row is multiplied by; the last
    stage also has the LM head."""
    if stages > spec.layers:
        raise ModelError(
            f"parallel.spp is {stages}, but the model has only {spec.layers} layers"
        )
    if stages == 1:
        return [(0, spec.layers)]
    head = (
        _HEAD_SHARE * spec.head_parameters / spec.active_layer_parameters
    )  # in layers

    def slowest(last: int) -> float:
        return max(-(-(spec.layers - last) // (stages - 1)), last + head)

    last = min(range(1, spec.layers - stages + 2), key=slowest)
    each, more = divmod(spec.layers - last, stages - 1)
    ends = [0]
    for stage in range(stages - 1):
        ends.append(ends[-1] + each + (stage < more))
    ends.append(spec.layers)
    return list(itertools.pairwise(ends))
