"""GGUF files: reading, dequantisation, and the families as llama.cpp stores them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from gguf_files import SMALL, convert, write
from stage_driver import GREEDY, Driver
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from medha_actors.config import ModelLoadingConfig
from medha_actors.errors import ModelError
from medha_actors.files.embedded import embedded_gguf
from medha_actors.files.gguf import GgufFile
from medha_actors.files.gguf_kinds import KINDS
from medha_actors.model.gguf_weights import read_tensor
from medha_actors.model.spec import load_spec

Kind = gguf.GGMLQuantizationType


def test_the_sizes_of_blocks_are_the_gguf_packages():
    theirs = {
        kind: (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in map(Kind, KINDS)
    }
    assert theirs == KINDS


@pytest.mark.parametrize(
    "name",
    [
        "Q4_0",
        "Q4_1",
        "Q8_0",
        "F16",
        "BF16",
        "F32",
        "Q5_0",
        "Q6_K",
        "Q2_K",
        "Q3_K",
        "TQ2_0",
    ],
)
def test_dequantisation_is_the_gguf_packages(tmp_path, name):
    kind = Kind[name]
    values = np.random.default_rng(0).standard_normal((6, 512), np.float32)
    try:
        stored = quantize(values, kind)
    except NotImplementedError:
        # the package can only read K-quants: any bytes will do, with scales that are finite
        _, size = gguf.GGML_QUANT_SIZES[kind]
        stored = np.random.default_rng(0).integers(
            0, 60, (6, 512 // 256 * size), np.uint8
        )
    path = tmp_path / "one.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("x", stored, raw_dtype=kind)
    write(writer)
    mine = read_tensor(GgufFile(path), "x", torch.float32)
    torch.testing.assert_close(
        mine, torch.from_numpy(dequantize(stored, kind).copy()), rtol=0, atol=0
    )


def test_metadata_is_the_gguf_packages():
    mine = GgufFile(embedded_gguf())
    theirs = gguf.GGUFReader(embedded_gguf())
    for key, field in theirs.fields.items():
        if key.startswith("GGUF."):
            continue
        expected = field.contents()
        if isinstance(expected, list) and isinstance(expected[0], str):
            expected = None  # the tokenizer's, which are skipped
        assert mine.metadata[key] == expected, key
    assert {t.name: (int(t.tensor_type), t.data_offset) for t in theirs.tensors} == {
        name: (t.kind, t.offset) for name, t in mine.tensors.items()
    }


@pytest.mark.parametrize("name", ["llama", "llama3", "qwen2", "qwen3"])
def test_families(tmp_path, check, name):
    build, config = {
        "llama": (LlamaForCausalLM, LlamaConfig),
        "llama3": (LlamaForCausalLM, LlamaConfig),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config),
        "qwen3": (Qwen3ForCausalLM, Qwen3Config),
    }[name]
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    scaling |= {"rope_theta": 1000.0, "original_max_position_embeddings": 32}
    torch.manual_seed(2)
    model = build(
        config(**SMALL, **({"rope_parameters": scaling} if name == "llama3" else {}))
    ).eval()
    divisors = None
    if name == "llama3":
        plain = 1.0 / 1000.0 ** (torch.arange(0, 16, 2).float() / 16)
        divisors = plain / model.model.rotary_emb.inv_freq
    path = tmp_path / "tiny.gguf"
    convert(model, path, name.removesuffix("3") if name == "llama3" else name, divisors)
    driver = Driver(ModelLoadingConfig(model_source=str(path)), stages=2)
    assert driver.spec.eos_ids == (3, 5)
    assert driver.spec.tied_head == model.config.tie_word_embeddings
    driver.add("r", list(range(1, 100)), GREEDY)
    driver.generate({"r": 8}, 40)
    check(driver.remove("r"), model)


def test_other_architectures_are_refused(tmp_path):
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "gemma3")
    write(writer)
    with pytest.raises(ModelError, match="gemma3"):
        load_spec(ModelLoadingConfig(model_source=str(path)))
    path.unlink()
    write(gguf.GGUFWriter(path, "llama"))
    with pytest.raises(ModelError, match="lacks"):
        load_spec(ModelLoadingConfig(model_source=str(path)))
