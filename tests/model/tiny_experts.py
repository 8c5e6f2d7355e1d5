"""Tiny mixtures of experts of every family, with random weights, and files of them."""

from __future__ import annotations

import copy

import torch
from gguf_files import convert
from quantised import random_blocks, values_of
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SMALL = {
    "vocab_size": 208,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "eos_token_id": 7,
}
QWEN = {"intermediate_size": 96, "moe_intermediate_size": 32, "num_experts": 12}
MIXTURES = {
    "mixtral": (
        MixtralForCausalLM,
        MixtralConfig(
            **SMALL, intermediate_size=64, num_local_experts=8, num_experts_per_tok=2
        ),
    ),
    "qwen3-moe": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(
            **SMALL, **QWEN, head_dim=32, num_experts_per_tok=4, norm_topk_prob=True
        ),
    ),
    "qwen3-moe-as-rated": (
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(
            **SMALL,
            **QWEN,
            head_dim=16,
            num_experts_per_tok=3,
            norm_topk_prob=False,
            attention_bias=True,
            tie_word_embeddings=True,
        ),
    ),
    "qwen2-moe": (
        Qwen2MoeForCausalLM,
        Qwen2MoeConfig(
            **SMALL,
            **QWEN,
            num_experts_per_tok=4,
            shared_expert_intermediate_size=96,
        ),
    ),
}


def made(family, **changes):
    """A model of transformers, with some numbers of its configuration changed."""
    build, plain = MIXTURES[family]
    config = copy.deepcopy(plain)
    config.update(changes)
    torch.manual_seed(1)
    model = build(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def quantised(path, narrow, wide):
    """A model of transformers whose experts are blocks: gate and up of one kind, down of another;
    and its file."""
    torch.manual_seed(3)
    config = Qwen3MoeConfig(
        vocab_size=160,
        hidden_size=256,
        intermediate_size=512,
        moe_intermediate_size=256,
        num_experts=6,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=128,
        initializer_range=0.1,
    )
    model = Qwen3MoeForCausalLM(config).eval()
    blocks = {}
    kinds = {}
    for number, layer in enumerate(model.model.layers):
        experts = layer.mlp.experts
        gate, up = experts.gate_up_proj.detach().chunk(2, 1)
        down = experts.down_proj.detach()
        for part, values, kind in (
            ("gate", gate, narrow),
            ("up", up, narrow),
            ("down", down, wide),
        ):
            name = f"blk.{number}.ffn_{part}_exps.weight"
            count, outputs, inputs = values.shape
            plain = random_blocks(kind, count * outputs, inputs, number)
            scale = 0.006 / values_of(plain, kind).std()
            raw = random_blocks(kind, count * outputs, inputs, number, scale)
            values.copy_(torch.from_numpy(values_of(raw, kind)).view(values.shape))
            blocks[name] = raw.reshape(count, outputs, -1)
            kinds[name] = kind
    keys = {
        "expert_count": 6,
        "expert_used_count": 2,
        "expert_feed_forward_length": 256,
    }
    convert(model, path, "qwen3moe", keys=keys, tensors=blocks, kinds=kinds)
    return model
