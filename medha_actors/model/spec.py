"""What the model is: dimensions and details, however its files spell them."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import torch

from medha_actors.config import ModelLoadingConfig, RopeScaling
from medha_actors.errors import ModelError
from medha_actors.model.rope import Rope
from medha_actors.model.source import resolve

# The head runs only for rows that are sampled; of a nominal batch that is about one row in sixteen.
_HEAD_SHARE = 1 / 16


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A dense decoder of the Llama family. Lengths in tokens."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    eps: float
    rope: Rope
    max_positions: int  # the longest sequence that is served
    tied_head: bool  # the LM head is the embedding table
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False  # Qwen3: RMSNorm of every query and key head
    eos_ids: tuple[int, ...] = ()

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's linear maps."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """Weights of the whole model, about."""
        tables = self.vocabulary * self.hidden * (1 if self.tied_head else 2)
        return self.layers * self.layer_parameters + tables


def load_spec(config: ModelLoadingConfig) -> ModelSpec:
    """Read the model's description (not its weights); raises ModelError in one line."""
    from medha_actors.model import architectures

    source = resolve(config)
    if source.kind == "random":
        spec = random_spec(config)
    elif source.kind == "gguf":
        spec = architectures.from_gguf(_known(source.path))
    else:
        spec = architectures.from_hugging_face(_known(source.path))
    if config.rope_scaling is not None:
        spec = rescale(spec, config.rope_scaling)
    return _limit(spec, config.max_model_len_tokens)


def random_spec(config: ModelLoadingConfig) -> ModelSpec:
    """A Llama of the configured dimensions."""
    given = config.random
    return ModelSpec(
        architecture="llama",
        layers=given.layers,
        hidden=given.hidden,
        heads=given.heads,
        kv_heads=given.kv_heads,
        head_dim=given.head_dim,
        intermediate=given.intermediate,
        vocabulary=given.vocabulary,
        eps=1e-5,
        rope=Rope(original_max_positions=2**24),
        max_positions=2**24,
        tied_head=True,
    )


def rescale(spec: ModelSpec, asked: RopeScaling) -> ModelSpec:
    """The configured RoPE scaling in place of the model's own."""
    own = spec.rope
    trained = own.original_max_positions if own.kind != "default" else spec.max_positions
    original = asked.original_max_position_embeddings or trained
    values = {
        name: getattr(asked, name)
        for name in ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow")
    }
    rope = Rope(
        theta=own.theta,
        kind=asked.rope_type,
        factor=asked.factor,
        original_max_positions=original,
        attention_factor=asked.attention_factor,
        **{name: value for name, value in values.items() if value is not None},
    )
    return msgspec.structs.replace(
        spec, rope=rope, max_positions=max(int(original * asked.factor), 1)
    )


def _limit(spec: ModelSpec, asked: int | None) -> ModelSpec:
    if asked is None:
        return spec
    if asked > spec.max_positions:
        raise ModelError(
            f"max_model_len_tokens is {asked}, but the model was made for {spec.max_positions}; "
            "set rope_scaling to extend it"
        )
    return msgspec.structs.replace(spec, max_positions=asked)


def _known(path: Path | None) -> Path:
    assert path is not None
    return path


def split_layers(spec: ModelSpec, stages: int) -> list[tuple[int, int]]:
    """Layer ranges [first, last) of the stages, balanced by cost; the last stage also has the LM
    head."""
    if stages > spec.layers:
        raise ModelError(f"parallel.spp is {stages}, but the model has only {spec.layers} layers")
    if stages == 1:
        return [(0, spec.layers)]
    head = _HEAD_SHARE * spec.hidden * spec.vocabulary / spec.layer_parameters  # in layers

    def slowest(last: int) -> float:
        return max(-(-(spec.layers - last) // (stages - 1)), last + head)

    last = min(range(1, spec.layers - stages + 2), key=slowest)
    each, more = divmod(spec.layers - last, stages - 1)
    ends = [0]
    for stage in range(stages - 1):
        ends.append(ends[-1] + each + (stage < more))
    ends.append(spec.layers)
    return list(itertools.pairwise(ends))


def kv_bytes_per_token(spec: ModelSpec, layers: tuple[int, int], dtype: torch.dtype) -> int:
    """Bytes of keys and values of one token in a stage that holds these layers."""
    return 2 * (layers[1] - layers[0]) * spec.kv_heads * spec.head_dim * dtype.itemsize


def resolve_dtype(config: ModelLoadingConfig, device: torch.device) -> torch.dtype:
    """The compute type; "auto" is bfloat16 where it is multiplied fast (on AVX2 by our kernels),
    else float32."""
    if config.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
            config.dtype
        ]
    if device.type == "cuda":
        return torch.bfloat16
    fast = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return torch.bfloat16 if fast else torch.float32
