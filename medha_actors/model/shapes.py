"""Which tensors a model has, by Hugging Face name, and their shapes: what its files must hold."""

from __future__ import annotations

from collections.abc import Iterator

from medha_actors.model_spec import ModelSpec

Shape = tuple[int, ...]
_Map = tuple[
    str, int, int, bool
]  # a linear map: name, outputs, inputs, whether it has a bias


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
    for name, rows, columns, bias in (*_attention(spec), *_feed_forward(spec)):
        yield f"{name}.weight", (rows, columns)
        if bias:
            yield f"{name}.bias", (rows,)
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield f"{name}.weight", (spec.hidden,)
    if spec.qk_norm:
        for name in ("self_attn.q_norm", "self_attn.k_norm"):
            yield f"{name}.weight", (spec.head_dim,)


def _attention(spec: ModelSpec) -> list[_Map]:
    wide = spec.heads * spec.head_dim
    narrow = spec.kv_heads * spec.head_dim
    return [
        ("self_attn.q_proj", wide, spec.hidden, spec.qkv_bias),
        ("self_attn.k_proj", narrow, spec.hidden, spec.qkv_bias),
        ("self_attn.v_proj", narrow, spec.hidden, spec.qkv_bias),
        ("self_attn.o_proj", spec.hidden, wide, spec.o_bias),
    ]


def _feed_forward(spec: ModelSpec) -> Iterator[_Map]:
    experts = spec.experts
    if experts is None:
        yield from _mlp("mlp", spec.hidden, spec.intermediate, spec.mlp_bias)
        return
    yield "mlp.gate", experts.count, spec.hidden, False
    for number in range(experts.count):
        yield from _mlp(f"mlp.experts.{number}", spec.hidden, spec.intermediate, False)
    if experts.shared:
        yield "mlp.shared_expert_gate", 1, spec.hidden, False
        yield from _mlp("mlp.shared_expert", spec.hidden, experts.shared, False)


def _mlp(name: str, hidden: int, intermediate: int, bias: bool) -> list[_Map]:
    return [
        (f"{name}.gate_proj", intermediate, hidden, bias),
        (f"{name}.up_proj", intermediate, hidden, bias),
        (f"{name}.down_proj", hidden, intermediate, bias),
    ]
