"""A tiny Llama of transformers, with weights large enough that its answers differ: the reference of
exactness tests."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tiny_llama(folder, vocabulary, length, seed):
    """The model, also saved in `folder`; `length`: of its longest sequence."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        max_position_embeddings=length,
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model
