"""Blocks of GGUF files on a GPU against the same file on the CPU in float32: matrices and the
embedding table of each kind."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from medha_actors.config import ModelLoadingConfig
from medha_actors.model.gguf_blocks import Q4_1, Q4_K, Q5_K, Q6_K, Q8_0
from tests.model.stage_driver import GREEDY, Driver

pytest.importorskip("gguf")

from tests.model.gguf_files import convert
from tests.model.quantised import random_blocks

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)

HIDDEN = 256
INTERMEDIATE = 512
VOCABULARY = 512
LAYERS = 2
PROMPT = list(range(3, 203))
GENERATED = 12


@pytest.fixture(params=[Q4_1, Q4_K, Q5_K, Q6_K, Q8_0])
def file(request, tmp_path):
    """A model of which all but queries and keys is blocks of one kind."""
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        initializer_range=0.08,
        tie_word_embeddings=False,
    )
    shapes = {"token_embd.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        shapes[f"blk.{layer}.attn_v.weight"] = (128, HIDDEN)
        shapes[f"blk.{layer}.attn_output.weight"] = (HIDDEN, HIDDEN)
        shapes[f"blk.{layer}.ffn_gate.weight"] = (INTERMEDIATE, HIDDEN)
        shapes[f"blk.{layer}.ffn_up.weight"] = (INTERMEDIATE, HIDDEN)
        shapes[f"blk.{layer}.ffn_down.weight"] = (HIDDEN, INTERMEDIATE)
    blocks = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        blocks[name] = random_blocks(request.param, *shape, seed=seed, scale=1e-3)
    path = tmp_path / "tiny.gguf"
    kinds = dict.fromkeys(blocks, request.param)
    convert(LlamaForCausalLM(config).eval(), path, "llama", tensors=blocks, kinds=kinds)
    return ModelLoadingConfig(model_source=str(path))


def driven(config, device, dtype, attention):
    driver = Driver(
        config,
        device=device,
        dtype=dtype,
        attention=attention,
        pages=12,
        page_tokens=64,
    )
    driver.add("r", PROMPT, GREEDY)
    driver.generate({"r": GENERATED}, 128)
    request = driver.requests["r"]
    found = [request.prompt_logprobs[place][0] for place in range(1, request.prompt)]
    return request.tokens, torch.tensor(found)


def test_blocks_give_what_they_give_on_the_cpu(file):
    tokens, expected = driven(file, "cpu", torch.float32, "sdpa")
    mine, found = driven(file, "cuda", torch.float32, "auto")
    assert mine == tokens
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    _, rounded = driven(file, "cuda", torch.bfloat16, "auto")
    assert (rounded - expected).abs().mean() < 0.1
