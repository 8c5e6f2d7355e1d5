"""Every supported family, from Hugging Face folders (sharded too), against transformers; and what
is refused."""

from __future__ import annotations

import json

import pytest
import torch
from stage_driver import GREEDY, Driver
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from medha_actors.config import ModelLoadingConfig, RandomWeights
from medha_actors.errors import ModelError
from medha_actors.files.source import resolve
from medha_actors.model.kernels import cpu
from medha_actors.model.kernels.decoder import KernelDecoder
from medha_actors.model.spec import load_spec, split_layers

SMALL = {
    "vocab_size": 208,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "eos_token_id": 7,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
FAMILIES = {
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(**SMALL, num_attention_heads=4, num_key_value_heads=2),
    ),
    "llama-bias": (
        LlamaForCausalLM,
        LlamaConfig(
            **SMALL,
            num_attention_heads=4,
            num_key_value_heads=4,
            attention_bias=True,
            mlp_bias=True,
        ),
    ),
    "llama3.1-tied": (
        LlamaForCausalLM,
        LlamaConfig(
            **SMALL,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=16,
            tie_word_embeddings=True,
            rope_parameters={
                **LLAMA3,
                "rope_theta": 500.0,
                "original_max_position_embeddings": 64,
            },
        ),
    ),
    "mistral": (
        MistralForCausalLM,
        MistralConfig(
            **SMALL,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            sliding_window=None,
        ),
    ),
    "qwen2": (
        Qwen2ForCausalLM,
        Qwen2Config(**SMALL, num_attention_heads=4, num_key_value_heads=2),
    ),
    "qwen3": (
        Qwen3ForCausalLM,
        Qwen3Config(**SMALL, num_attention_heads=4, num_key_value_heads=2, head_dim=48),
    ),
}


@pytest.fixture(params=FAMILIES)
def saved(request, tmp_path):
    """A tiny model of one family in transformers, and its folder (sharded: its files are at most 60
    KB)."""
    build, config = FAMILIES[request.param]
    torch.manual_seed(1)
    model = build(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    return model, tmp_path


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize(
    ("stages", "chunk"), [(1, 3), (1, 200), (2, 16), (3, 3), (3, 50)]
)
def test_tokens_and_log_probabilities(saved, check, stages, chunk, attention):
    model, folder = saved
    driver = Driver(
        ModelLoadingConfig(model_source=str(folder)), stages=stages, attention=attention
    )
    if cpu.native():
        kernels = isinstance(driver.pipelines[0][0].decoder, KernelDecoder)
        assert kernels == (attention == "auto")
    for seed, length in enumerate((150, 1, 17)):
        generator = torch.Generator().manual_seed(seed)
        driver.add(
            str(length),
            torch.randint(208, (length,), generator=generator).tolist(),
            GREEDY,
        )
    driver.generate({"150": 6, "1": 9, "17": 7}, chunk)
    driver.drop("17")
    driver.generate({"150": 8, "17": 12}, chunk)
    for request in list(driver.requests):
        check(driver.remove(request), model)
    assert driver.spec.eos_ids == (7,)


def test_a_stage_reads_only_its_own_layers(saved, monkeypatch):
    from medha_actors.model.weights import SafetensorsWeights

    asked = []
    read = SafetensorsWeights.tensor
    monkeypatch.setattr(
        SafetensorsWeights,
        "tensor",
        lambda self, name, *a: asked.append(name) or read(self, name, *a),
    )
    Driver(ModelLoadingConfig(model_source=str(saved[1])), stages=1)
    everything = set(asked)
    asked.clear()
    driver = Driver(ModelLoadingConfig(model_source=str(saved[1])), stages=3)
    again = [name for name in everything if asked.count(name) > 1]
    assert set(asked) == everything
    assert again == (["model.embed_tokens.weight"] if driver.spec.tied_head else [])


def test_broken_weights_are_named(saved):
    _, folder = saved
    config = ModelLoadingConfig(model_source=str(folder))
    first = sorted(folder.glob("*.safetensors"))[0]
    first.write_bytes(b"broken")
    with pytest.raises(ModelError, match=first.name):
        Driver(config)
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {}}')
    with pytest.raises(ModelError, match="holds no"):
        Driver(config)
    index.write_text("{")
    with pytest.raises(ModelError, match="index"):
        Driver(config)
    for path in (index, *folder.glob("*.safetensors")):
        path.unlink()
    with pytest.raises(ModelError, match="holds no"):
        Driver(config)


def refused(folder, **changes):
    path = folder / "config.json"
    path.write_text(
        json.dumps(
            {
                **LlamaConfig(**SMALL, num_attention_heads=4).to_dict(),
                "architectures": ["LlamaForCausalLM"],
                **changes,
            }
        )
    )
    with pytest.raises(ModelError) as error:
        load_spec(ModelLoadingConfig(model_source=str(folder)))
    assert "\n" not in error.value.message
    return error.value.message


def test_what_cannot_be_run_is_refused_in_one_line(tmp_path):
    assert "GPT2LMHeadModel" in refused(tmp_path, architectures=["GPT2LMHeadModel"])
    assert "gelu" in refused(tmp_path, hidden_act="gelu")
    assert "quantised" in refused(tmp_path, quantization_config={"bits": 4})
    path = tmp_path / "config.json"
    path.write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(ModelError, match="num_attention_heads"):
        load_spec(ModelLoadingConfig(model_source=str(tmp_path)))
    path.write_text("{")
    with pytest.raises(ModelError, match=r"config\.json"):
        load_spec(ModelLoadingConfig(model_source=str(tmp_path)))


def test_missing_files_are_named(tmp_path):
    for name in (
        str(tmp_path),
        str(tmp_path / "nothing"),
        str(tmp_path / "no.gguf"),
        "nonsense",
    ):
        with pytest.raises(ModelError, match=name.rsplit("/", 1)[-1]):
            resolve(ModelLoadingConfig(model_source=name))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(ModelError, match=r"bad\.gguf"):
        load_spec(ModelLoadingConfig(model_source=str(tmp_path / "bad.gguf")))


def test_layers_are_split_by_cost():
    spec = load_spec(ModelLoadingConfig())
    assert split_layers(spec, 1) == [(0, 30)]
    assert split_layers(spec, 2) == [(0, 15), (15, 30)]
    assert split_layers(spec, 3) == [(0, 10), (10, 20), (20, 30)]
    for stages in range(1, 31):
        parts = split_layers(spec, stages)
        assert [first for first, _ in parts] == [0, *(last for _, last in parts[:-1])]
        assert parts[-1][1] == 30
        assert all(first < last for first, last in parts)
    with pytest.raises(ModelError, match="31"):
        split_layers(spec, 31)
    heavy = RandomWeights(layers=8, hidden=64, vocabulary=20_000, intermediate=64)
    head_heavy = load_spec(ModelLoadingConfig(model_source="random", random=heavy))
    (first, middle), (_, last) = split_layers(head_heavy, 2)
    assert middle - first > last - middle
