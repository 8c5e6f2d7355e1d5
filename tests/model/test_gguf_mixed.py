"""Files of matrices of many kinds, as Q4_K_M and its like are: exact, and nothing expanded."""

from __future__ import annotations

import pytest
import torch
from gguf_files import convert
from quantised import random_blocks, values_of
from stage_driver import GREEDY, Driver
from transformers import Qwen3Config, Qwen3ForCausalLM

from medha_actors.config import ModelLoadingConfig
from medha_actors.model.gguf_blocks import (
    IQ4_NL,
    IQ4_XS,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
)
from medha_actors.model.gguf_weights import gguf_name
from medha_actors.model.kernels import cpu
from medha_actors.model.kernels.decoder import KernelDecoder

MIXES = {
    "Q4_K_M": {"v_proj": Q6_K, "down_proj": Q6_K, "embed_tokens": Q6_K, "": Q4_K},
    "Q5_K_M": {"v_proj": Q6_K, "down_proj": Q6_K, "embed_tokens": Q6_K, "": Q5_K},
    "all": {
        "q_proj": Q5_0,
        "k_proj": Q5_1,
        "v_proj": Q8_0,
        "o_proj": IQ4_NL,
        "gate_proj": Q4_0,
        "up_proj": Q4_1,
        "down_proj": IQ4_XS,
        "": Q5_K,
    },
}


def stored(model, mix):
    """Gives the model's matrices random values of some kinds of blocks; returns the blocks and
    their kinds by name in a file."""
    blocks = {}
    kinds = {}
    for number, (name, values) in enumerate(model.state_dict().items()):
        if values.dim() != 2 or name == "lm_head.weight":
            continue
        kind = next(kind for part, kind in mix.items() if part in name)
        scale = 0.1
        deviation = values_of(
            random_blocks(kind, *values.shape, number, scale), kind
        ).std()
        raw = random_blocks(kind, *values.shape, number, scale * 0.06 / deviation)
        blocks[gguf_name(name)] = raw
        kinds[gguf_name(name)] = kind
        values.copy_(torch.from_numpy(values_of(raw, kind)))
    return blocks, kinds


@pytest.fixture(params=MIXES)
def mixed(request, tmp_path):
    """A model and its file."""
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=160,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        eos_token_id=None,
    )
    model = Qwen3ForCausalLM(config).eval()
    blocks, kinds = stored(model, MIXES[request.param])
    path = tmp_path / "mixed.gguf"
    convert(model, path, "qwen3", tensors=blocks, kinds=kinds)
    return model, path, MIXES[request.param]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_unlike_matrices_stay_as_they_are(mixed, check, monkeypatch, dtype):
    monkeypatch.setattr(cpu, "native", lambda: True)
    model, path, mix = mixed
    driver = Driver(ModelLoadingConfig(model_source=str(path)), dtype=dtype)
    decoder = driver.pipelines[0][0].decoder
    assert isinstance(decoder, KernelDecoder)
    for layer in decoder.layers.weights:
        for stack in layer[:4]:
            assert not any(matrix.layout.plain for matrix in stack)
        assert sum(matrix.outputs for matrix in layer.qkv) == 512
        assert len(layer.qkv) == (3 if "q_proj" in mix else 2)
    driver.add("r", list(range(1, 100)), GREEDY)
    if dtype == torch.float32:
        driver.generate({"r": 8}, 40)
        check(driver.remove("r"), model)
        return
    driver.generate({"r": 1}, 40)
    found = driver.remove("r").prompt_logprobs
    with torch.inference_mode():
        expected = model(torch.arange(1, 100)[None]).logits[0].log_softmax(-1)
    for position in range(1, 99):
        assert abs(found[position][0] - expected[position - 1, position + 1]) < 0.5


def test_torchs_operators_find_the_same(mixed, check):
    """They have every matrix expanded, but for the embedding table."""
    model, path, _ = mixed
    driver = Driver(ModelLoadingConfig(model_source=str(path)), attention="sdpa")
    driver.add("r", list(range(1, 100)), GREEDY)
    driver.generate({"r": 3}, 40)
    check(driver.remove("r"), model)
