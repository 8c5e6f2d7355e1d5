"""RoPE frequencies and rotation against transformers."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from medha_actors.config import ModelLoadingConfig, RandomWeights, RopeScaling
from medha_actors.errors import ModelError
from medha_actors.model.architectures import from_hugging_face
from medha_actors.model.rope import Rotary, frequencies_of, rotate
from medha_actors.model.spec import load_spec

VARIANTS = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
    {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 512,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "attention_factor": 0.9,
    },
    {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 512,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
        "truncate": False,
    },
]

PLAIN = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 1,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 512,
}


def config_of(parameters):
    return LlamaConfig(
        hidden_size=128,
        num_attention_heads=4,
        max_position_embeddings=512,
        rope_parameters={"rope_theta": 50_000.0, **parameters},
    )


def read(folder, **fields):
    """What is made of a config.json with these fields."""
    folder.joinpath("config.json").write_text(json.dumps({**fields, **PLAIN}))
    spec = from_hugging_face(folder)
    return spec.rope, spec.max_positions


@pytest.mark.parametrize("parameters", VARIANTS, ids=lambda p: p["rope_type"])
def test_frequencies_and_attention_factor(parameters, tmp_path):
    config = config_of(parameters)
    rope, positions = read(tmp_path, **json.loads(config.to_json_string()))
    mine, scale = frequencies_of(rope, 32, positions)
    if parameters["rope_type"] == "default":
        expected = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        expected = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](
            config, torch.device("cpu"), seq_len=positions
        )
    torch.testing.assert_close(mine, expected[0], rtol=1e-6, atol=0)
    assert scale == pytest.approx(expected[1])


@pytest.mark.parametrize(
    "parameters", VARIANTS[:1] + VARIANTS[3:5], ids=lambda p: p["rope_type"]
)
def test_rotation(parameters, tmp_path):
    config = config_of(parameters)
    rope, positions = read(tmp_path, **json.loads(config.to_json_string()))
    where = torch.tensor([0, 3, 1000])
    q = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0))
    cos, sin = Rotary(rope, 32, positions, torch.device("cpu"))(where, torch.float32)
    theirs = LlamaRotaryEmbedding(config)(q, where[None])
    expected, _ = apply_rotary_pos_emb(
        q.transpose(0, 1)[None], q.transpose(0, 1)[None], *theirs
    )
    torch.testing.assert_close(
        rotate(q, cos, sin), expected[0].transpose(0, 1), rtol=1e-5, atol=1e-5
    )


def test_the_old_spelling_in_a_config(tmp_path):
    scaling = {"type": "linear", "factor": 2.0}
    rope, positions = read(
        tmp_path, max_position_embeddings=64, rope_theta=9.0, rope_scaling=scaling
    )
    assert (rope.theta, rope.kind, rope.factor, positions) == (9.0, "linear", 2.0, 128)


def test_our_configuration_overrides_the_models_scaling():
    small = RandomWeights()
    scaling = RopeScaling(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=1000
    )
    spec = load_spec(
        ModelLoadingConfig(model_source="random", random=small, rope_scaling=scaling)
    )
    assert spec.max_positions == 4000
    assert spec.rope.kind == "yarn"
    with pytest.raises(ModelError, match="4000"):
        load_spec(
            ModelLoadingConfig(
                model_source="random",
                random=small,
                rope_scaling=scaling,
                max_model_len_tokens=4001,
            )
        )


def test_unknown_scalings_are_refused(tmp_path):
    with pytest.raises(ModelError, match="longrope"):
        read(tmp_path, rope_scaling={"rope_type": "longrope"})
    with pytest.raises(ModelError, match="partial"):
        read(tmp_path, partial_rotary_factor=0.5)
