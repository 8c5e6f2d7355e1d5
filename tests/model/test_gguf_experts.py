"""Mixtures of experts from GGUF files, as llama.cpp stores and reads them."""

from __future__ import annotations

import pytest
from gguf_files import convert
from stage_driver import GREEDY, Driver
from tiny_experts import made, quantised

from medha_actors.config import ModelLoadingConfig
from medha_actors.errors import ModelError
from medha_actors.model.gguf_blocks import Q4_K, Q5_0, Q6_K, Q8_0
from medha_actors.model.spec import load_spec
from medha_actors.model_spec import Experts

ROUTED = {"expert_count": 12, "expert_used_count": 4, "expert_feed_forward_length": 32}
FILES = {
    "mixtral": ("llama", {"expert_count": 8, "expert_used_count": 2}),
    "qwen3-moe": ("qwen3moe", ROUTED),
    "qwen2-moe": ("qwen2moe", ROUTED | {"expert_shared_feed_forward_length": 96}),
}


def spec_of(path):
    return load_spec(ModelLoadingConfig(model_source=str(path)))


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("family", FILES)
def test_families(tmp_path, check, family, attention):
    model = made(family)
    name, keys = FILES[family]
    path = tmp_path / "tiny.gguf"
    convert(model, path, name, keys=keys)
    driver = Driver(
        ModelLoadingConfig(model_source=str(path)), stages=2, attention=attention
    )
    driver.add("r", list(range(1, 100)), GREEDY)
    driver.generate({"r": 8}, 40)
    check(driver.remove("r"), model)


def test_what_is_left_out_is_what_llama_cpp_takes(tmp_path):
    path = tmp_path / "tiny.gguf"
    few = {"expert_count": 12, "expert_used_count": 3}  # a third of 96
    convert(made("qwen3-moe"), path, "qwen3moe", keys=few)
    spec = spec_of(path)
    assert spec.experts == Experts(count=12, used=3, normalised=True)
    assert spec.intermediate == 32
    gate = (
        made("qwen2-moe").model.layers[0].mlp.shared_expert_gate.weight.detach().numpy()
    )
    vector = {f"blk.{layer}.ffn_gate_inp_shexp.weight": gate[0] for layer in range(3)}
    convert(made("qwen2-moe"), path, "qwen2moe", keys=few, tensors=vector)
    assert spec_of(path).experts == Experts(
        count=12, used=3, normalised=False, shared=96
    )
    neutral = {
        "expert_count": 0,
        "expert_used_count": 0,
        "leading_dense_block_count": 0,
    }
    neutral |= {
        "expert_gating_func": 1,
        "expert_weights_scale": 1.0,
        "expert_weights_norm": True,
    }
    convert(made("qwen3-moe"), path, "qwen3moe", keys=neutral | ROUTED)
    assert spec_of(path).experts == Experts(count=12, used=4, normalised=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_weights_norm", False),
        ("expert_weights_scale", 2.5),
        ("expert_gating_func", 2),
        ("expert_group_count", 4),
        ("expert_shared_count", 1),
        ("expert_shared_feed_forward_length", 64),
        ("expert_chunk_feed_forward_length", 64),
        ("leading_dense_block_count", 1),
        ("interleave_moe_layer_step", 2),
    ],
)
def test_what_is_not_done_is_refused_by_name(tmp_path, key, value):
    path = tmp_path / "tiny.gguf"
    convert(made("qwen3-moe"), path, "qwen3moe", keys=ROUTED | {key: value})
    with pytest.raises(ModelError, match=f"qwen3moe.{key}"):
        spec_of(path)


def test_numbers_and_tensors_that_are_missing_are_named(tmp_path):
    path = tmp_path / "tiny.gguf"
    model = made("qwen3-moe")
    for keys, says in (
        ({}, "expert_count"),
        ({"expert_count": 12}, "expert_used_count"),
        (ROUTED | {"expert_used_count": 13}, "13 of 12 experts"),
        (ROUTED | {"expert_count": 8}, r"ffn_gate_inp.weight has shape \[12, 64\]"),
        (
            ROUTED | {"expert_feed_forward_length": 16},
            r"ffn_gate_exps.weight has shape \[12, 32",
        ),
    ):
        convert(model, path, "qwen3moe", keys=keys)
        with pytest.raises(ModelError, match=says):
            spec_of(path)
    convert(
        model, path, "qwen3moe", keys=ROUTED, tensors={"blk.1.ffn_up_exps.weight": None}
    )
    with pytest.raises(ModelError, match=r"has no tensor blk.1.ffn_up_exps.weight"):
        spec_of(path)
    convert(model, path, "qwen3", keys=ROUTED)
    with pytest.raises(ModelError, match=r"qwen3.expert_count = 12 is not supported"):
        spec_of(path)


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("kinds", [(Q4_K, Q6_K), (Q8_0, Q5_0)], ids=["K", "32"])
def test_quantised_experts_are_those_of_the_file(tmp_path, check, kinds, attention):
    path = tmp_path / "quantised.gguf"
    model = quantised(path, *kinds)
    driver = Driver(ModelLoadingConfig(model_source=str(path)), attention=attention)
    driver.add("r", list(range(1, 100)), GREEDY)
    driver.generate({"r": 6}, 40)
    check(driver.remove("r"), model)
