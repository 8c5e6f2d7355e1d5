"""Which tensors a model has, by Hugging Face name, and their shapes: what its files must hold."""

from __future__ import annotations

from collections.abc import Iterator

from medha_actors.model_spec import ModelSpec

Shape = tuple[int, ...]


def tensor_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Every tensor of the model."""
    shapes: dict[str, Shape] = {
        "model.embed_tokens.weight": (spec.vocabulary, spec.hidden),
        "model.norm.weight": (spec.hidden,),
    }
    if not spec.tied_head:
        shapes["lm_head.weight"] = (spec.vocabulary, spec.hidden)
    layer = dict(_layer(spec))
    for number in range(spec.layers):
        for name, shape in layer.items():
            shapes[f"model.layers.{number}.{name}"] = shape
    return shapes


def _layer(spec: ModelSpec) -> Iterator[tuple[str, Shape]]:
    wide = spec.heads * spec.head_dim
    narrow = spec.kv_heads * spec.head_dim
    maps = [
        ("self_attn.q_proj", wide, spec.hidden, spec.qkv_bias),
        ("self_attn.k_proj", narrow, spec.hidden, spec.qkv_bias),
        ("self_attn.v_proj", narrow, spec.hidden, spec.qkv_bias),
        ("self_attn.o_proj", spec.hidden, wide, spec.o_bias),
        ("mlp.gate_proj", spec.intermediate, spec.hidden, spec.mlp_bias),
        ("mlp.up_proj", spec.intermediate, spec.hidden, spec.mlp_bias),
        ("mlp.down_proj", spec.hidden, spec.intermediate, spec.mlp_bias),
    ]
    for name, rows, columns, bias in maps:
        yield f"{name}.weight", (rows, columns)
        if bias:
            yield f"{name}.bias", (rows,)
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield f"{name}.weight", (spec.hidden,)
    if spec.qk_norm:
        for name in ("self_attn.q_norm", "self_attn.k_norm"):
            yield f"{name}.weight", (spec.head_dim,)
