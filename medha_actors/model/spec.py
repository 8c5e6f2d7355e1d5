"""Reads what a model is from its files, without torch: whoever only asks is there two seconds
sooner."""

from __future__ import annotations

import msgspec

from medha_actors.config import ModelLoadingConfig
from medha_actors.errors import ModelError
from medha_actors.files.source import resolve
from medha_actors.model.architectures import from_hugging_face
from medha_actors.model.gguf_spec import from_gguf
from medha_actors.model_spec import ModelSpec, Rope, rescale, split_layers

__all__ = [
    "ModelSpec",
    "load_spec",
    "random_spec",
    "split_layers",
]


def load_spec(config: ModelLoadingConfig) -> ModelSpec:
    """Read the model's description (not its weights); raises ModelError in one line."""
    source = resolve(config)
    if source.kind == "random":
        spec = random_spec(config)
    elif source.kind == "gguf":
        spec = from_gguf(source.files)
    else:
        spec = from_hugging_face(source.files)
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


def _limit(spec: ModelSpec, asked: int | None) -> ModelSpec:
    if asked is None:
        return spec
    if asked > spec.max_positions and spec.window == spec.max_positions:
        raise ModelError(
            f"max_model_len_tokens is {asked}, but the model attends to a sliding window of "
            f"{spec.window} tokens: served exactly up to there, and not at all beyond"
        )
    if asked > spec.max_positions:
        raise ModelError(
            f"max_model_len_tokens is {asked}, but the model was made for {spec.max_positions}; "
            "set rope_scaling to extend it"
        )
    return msgspec.structs.replace(spec, max_positions=asked)
