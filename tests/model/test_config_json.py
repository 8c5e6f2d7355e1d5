"""What a config.json says or leaves out is read as transformers reads it, or refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from stage_driver import GREEDY, Driver
from transformers import (
    LlamaConfig,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from medha_actors.config import ModelLoadingConfig, RopeScaling
from medha_actors.errors import ModelError
from medha_actors.model.spec import load_spec

SMALL = {
    "vocab_size": 208,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}


def spec_of(folder, **settings):
    return load_spec(ModelLoadingConfig(model_source=str(folder), **settings))


def save(folder, name, config):
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [name]}))


@pytest.mark.parametrize(
    ("name", "build", "left_out"),
    [
        ("LlamaForCausalLM", LlamaConfig, {}),
        ("MistralForCausalLM", MistralConfig, {}),
        ("Qwen2ForCausalLM", Qwen2Config, {}),
        ("Qwen3ForCausalLM", Qwen3Config, {}),
        ("Qwen2ForCausalLM", Qwen2Config, {"use_sliding_window": True}),
        ("Qwen3ForCausalLM", Qwen3Config, {"use_sliding_window": True}),
    ],
)
def test_what_is_left_out_is_what_transformers_takes(tmp_path, name, build, left_out):
    keys = ("vocab_size", "hidden_size", "intermediate_size")
    given = {key: SMALL[key] for key in keys}
    given |= {"num_hidden_layers": 30, "num_attention_heads": 4, **left_out}
    theirs = build(**given)
    save(tmp_path, name, given)
    spec = spec_of(tmp_path)
    window = getattr(theirs, "sliding_window", None)
    positions = theirs.max_position_embeddings
    assert spec.kv_heads == (theirs.num_key_value_heads or 4)
    assert spec.head_dim == getattr(theirs, "head_dim", 16)
    assert spec.eps == theirs.rms_norm_eps
    assert spec.rope.theta == theirs.rope_parameters["rope_theta"]
    assert spec.tied_head == theirs.tie_word_embeddings
    assert spec.window == window
    assert spec.max_positions == (min(window, positions) if window else positions)


@pytest.mark.parametrize(
    ("name", "changes", "positions"),
    [
        ("MistralForCausalLM", {"sliding_window": 100}, 100),
        ("MistralForCausalLM", {"sliding_window": None}, 256),
        (
            "MistralForCausalLM",
            {"sliding_window": 100, "layer_types": ["full_attention"]},
            100,
        ),
        ("LlamaForCausalLM", {"sliding_window": 100}, 100),
        ("Qwen2ForCausalLM", {"sliding_window": 100}, 256),
        ("Qwen2ForCausalLM", {"sliding_window": 100, "use_sliding_window": True}, 256),
        (
            "Qwen2ForCausalLM",
            {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 2},
            100,
        ),
        (
            "Qwen2ForCausalLM",
            {
                "sliding_window": None,
                "use_sliding_window": True,
                "max_window_layers": 2,
            },
            256,
        ),
        (
            "Qwen3ForCausalLM",
            {
                "sliding_window": 100,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            100,
        ),
        (
            "Qwen3ForCausalLM",
            {
                "sliding_window": 100,
                "use_sliding_window": True,
                "max_window_layers": 0,
                "layer_types": ["full_attention", "full_attention"],
            },
            256,
        ),
    ],
)
def test_a_sliding_window_in_any_layer_bounds_the_length(
    tmp_path, name, changes, positions
):
    """Also where our configuration stretches RoPE."""
    save(tmp_path, name, {**SMALL, **changes})
    assert spec_of(tmp_path).max_positions == positions
    with pytest.raises(
        ModelError, match="sliding window of 100" if positions == 100 else "256"
    ):
        spec_of(tmp_path, max_model_len_tokens=positions + 1)
    stretched = spec_of(
        tmp_path, rope_scaling=RopeScaling(rope_type="linear", factor=4.0)
    )
    assert stretched.max_positions == (100 if positions == 100 else 1024)
    assert stretched.rope.original_max_positions == 256


@pytest.mark.parametrize(
    ("build", "config"),
    [
        (MistralForCausalLM, MistralConfig(**SMALL, sliding_window=100)),
        (
            Qwen2ForCausalLM,
            Qwen2Config(
                **SMALL,
                use_sliding_window=True,
                sliding_window=100,
                max_window_layers=1,
            ),
        ),
        (
            Qwen3ForCausalLM,
            Qwen3Config(
                **SMALL,
                head_dim=16,
                use_sliding_window=True,
                sliding_window=100,
                layer_types=[
                    "sliding_attention",
                    "full_attention",
                    "sliding_attention",
                ],
            ),
        ),
    ],
)
def test_within_its_window_a_sliding_model_is_exact(tmp_path, check, build, config):
    """To its last position, and no further: there transformers says something else."""
    torch.manual_seed(1)
    model = build(config).eval()
    model.save_pretrained(tmp_path)
    driver = Driver(ModelLoadingConfig(model_source=str(tmp_path)))
    assert driver.spec.max_positions == 100
    driver.add("fits", list(range(1, 92)), GREEDY)
    driver.add("does not", list(range(1, 142)), GREEDY)
    driver.generate({"fits": 9, "does not": 9}, 40)
    check(driver.remove("fits"), model)
    with pytest.raises(AssertionError):
        check(driver.remove("does not"), model)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
        ({"layer_types": ["sliding_attention"]}, "sliding_window is None"),
        ({"sliding_window": "wide"}, "sliding_window is wide"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
            "layer to layer",
        ),
        ({"hidden_size": "64", "head_dim": None}, "misstates"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, changes, says):
    save(tmp_path, "LlamaForCausalLM", {**SMALL, **changes})
    with pytest.raises(ModelError, match=says):
        spec_of(tmp_path)


def test_tensors_are_checked_against_the_config(tmp_path):
    torch.manual_seed(1)
    config = MistralConfig(**SMALL)
    MistralForCausalLM(config).save_pretrained(tmp_path)
    save(tmp_path, "MistralForCausalLM", {**config.to_dict(), "vocab_size": 200})
    with pytest.raises(
        ModelError, match=r"embed_tokens.weight has shape \[208, 64\]; by config"
    ):
        Driver(ModelLoadingConfig(model_source=str(tmp_path)))
    save(tmp_path, "MistralForCausalLM", config.to_dict())
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name].to(torch.float8_e4m3fn)}, path)
    with pytest.raises(ModelError, match=r"up_proj.weight holds F8_E4M3; quantised"):
        Driver(ModelLoadingConfig(model_source=str(tmp_path)))
    index = {"weight_map": dict.fromkeys(tensors, path.name)}
    del tensors[name]
    save_file(tensors, path)
    with pytest.raises(
        ModelError, match=r"has no tensor model.layers.1.mlp.up_proj.weight"
    ):
        Driver(ModelLoadingConfig(model_source=str(tmp_path)))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="up_proj"):
        Driver(ModelLoadingConfig(model_source=str(tmp_path)))
