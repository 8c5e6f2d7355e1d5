"""Mixtures of experts from Hugging Face folders, against transformers; what is refused, and what
they take of time and memory."""

from __future__ import annotations

import json
import math

import msgspec
import pytest
import torch
from stage_driver import GREEDY, Driver
from tiny_experts import MIXTURES, QWEN, SMALL, made
from transformers import MixtralConfig, Qwen2MoeConfig, Qwen3MoeConfig

from medha_actors.config import ModelLoadingConfig
from medha_actors.errors import ModelError
from medha_actors.model.experts import ExpertMlp, Router
from medha_actors.model.kernels import cpu
from medha_actors.model.kernels.decoder import KernelDecoder
from medha_actors.model.spec import load_spec, split_layers
from medha_actors.model_spec import Experts


@pytest.fixture(params=MIXTURES)
def saved(request, tmp_path):
    """A model in transformers, and its folder (sharded)."""
    model = made(request.param)
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    return model, tmp_path


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize(("stages", "chunk"), [(1, 3), (1, 200), (3, 50)])
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


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_pieces_in_several_groups(saved, check, attention):
    model, folder = saved
    config = ModelLoadingConfig(model_source=str(folder))
    driver = Driver(
        config, groups=2, page_tokens=64, cutoffs=(64,), attention=attention
    )
    driver.add("long", list(range(140)), GREEDY)
    driver.add("short", [5, 7, 11], GREEDY)
    driver.generate({"long": 5, "short": 9}, 50)
    for name in ("long", "short"):
        check(driver.remove(name), model)


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_experts_that_no_row_takes_are_not_multiplied(tmp_path, check, attention):
    """Of w, -w, v and -v two are above 0 whatever the row: an expert that is rated 0 has no say,
    and its weights are not numbers."""
    model = made("mixtral")
    with torch.no_grad():
        for layer in model.model.layers:
            router = layer.mlp.gate.weight
            router[1] = -router[0]
            router[3] = -router[2]
            router[4:] = 0
            layer.mlp.experts.gate_up_proj[4:] = math.nan
            layer.mlp.experts.down_proj[4:] = math.nan
    model.save_pretrained(tmp_path)
    driver = Driver(ModelLoadingConfig(model_source=str(tmp_path)), attention=attention)
    driver.add("r", list(range(1, 100)), GREEDY)
    driver.generate({"r": 6}, 40)
    check(driver.remove("r"), model)


def test_the_number_of_weights_is_that_of_transformers(saved):
    model, folder = saved
    spec = load_spec(ModelLoadingConfig(model_source=str(folder)))
    maps = [values for values in model.parameters() if values.dim() > 1]
    assert spec.parameters == pytest.approx(
        sum(values.numel() for values in maps), rel=1e-3
    )


def spec_of(folder, name, config, **settings):
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [name]}))
    return load_spec(ModelLoadingConfig(model_source=str(folder), **settings))


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("MixtralForCausalLM", MixtralConfig),
        ("Qwen2MoeForCausalLM", Qwen2MoeConfig),
        ("Qwen3MoeForCausalLM", Qwen3MoeConfig),
    ],
)
@pytest.mark.parametrize("more", [{}, {"use_sliding_window": True}])
def test_what_is_left_out_is_what_transformers_takes(tmp_path, name, build, more):
    given = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2}
    given |= {"num_attention_heads": 4, "intermediate_size": 80, **more}
    theirs = build(**given)
    spec = spec_of(tmp_path, name, given)
    positions = theirs.max_position_embeddings
    assert spec.kv_heads == theirs.num_key_value_heads
    assert spec.head_dim == 16
    assert spec.eps == theirs.rms_norm_eps
    assert spec.rope.theta == theirs.rope_parameters["rope_theta"]
    assert spec.tied_head == theirs.tie_word_embeddings
    assert spec.window == (theirs.sliding_window or None)
    assert spec.max_positions == min(positions, theirs.sliding_window or positions)
    assert spec.intermediate == getattr(theirs, "moe_intermediate_size", 80)
    assert spec.qkv_bias == getattr(theirs, "qkv_bias", False)
    assert spec.experts == Experts(
        count=theirs.num_experts,
        used=theirs.num_experts_per_tok,
        normalised=getattr(theirs, "norm_topk_prob", True),
        shared=getattr(theirs, "shared_expert_intermediate_size", 0),
    )


@pytest.mark.parametrize(
    ("name", "changes", "window"),
    [
        ("Qwen3MoeForCausalLM", {"sliding_window": 100}, None),
        (
            "Qwen3MoeForCausalLM",
            {"sliding_window": 100, "use_sliding_window": True},
            100,
        ),
        ("Qwen2MoeForCausalLM", {"sliding_window": 100, "max_window_layers": 2}, None),
        (
            "Qwen2MoeForCausalLM",
            {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 2},
            100,
        ),
        (
            "Qwen2MoeForCausalLM",
            {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 0},
            None,
        ),
        ("MixtralForCausalLM", {"sliding_window": 100}, 100),
    ],
)
def test_a_sliding_window_bounds_the_length(tmp_path, name, changes, window):
    spec = spec_of(tmp_path, name, {**SMALL, "intermediate_size": 96, **changes})
    assert spec.window == window
    assert spec.max_positions == (window or 256)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("Qwen3MoeForCausalLM", {"mlp_only_layers": [1]}, r"mlp_only_layers: \[1\]"),
        ("Qwen2MoeForCausalLM", {"decoder_sparse_step": 2}, "decoder_sparse_step: 2"),
        ("Qwen3MoeForCausalLM", {"num_experts_per_tok": 13}, "13 of 12 experts"),
        (
            "MixtralForCausalLM",
            {"num_local_experts": 2, "num_experts_per_tok": 0},
            "0 of 2",
        ),
        ("Qwen3MoeForCausalLM", {"num_experts_per_tok": "all"}, "misstates"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, name, changes, says):
    with pytest.raises(ModelError, match=says):
        spec_of(tmp_path, name, {**SMALL, **QWEN, **changes})


def test_the_first_of_equals_is_taken_and_weights_are_as_stated():
    experts = Experts(count=5, used=2, normalised=False, shared=32)
    weight = torch.zeros(6, 4)
    weight[3] = 1.0
    weight[5] = 0.5
    numbers, weights = Router(weight, experts)(torch.ones(2, 4))
    chances = torch.tensor([0.0, 0.0, 0.0, 4.0, 0.0]).softmax(0)
    assert numbers.tolist() == [[3, 0, 5]] * 2
    expected = torch.tensor([chances[3], chances[0], torch.tensor(2.0).sigmoid()])
    torch.testing.assert_close(weights, expected.expand(2, -1))
    whole = msgspec.structs.replace(experts, normalised=True)
    _, weights = Router(weight, whole)(torch.ones(2, 4))
    torch.testing.assert_close(weights[:, :2].sum(1), torch.ones(2))


def test_a_row_is_the_same_whoever_is_beside_it():
    """Every expert is run once, for all rows that take it; the sums are in the experts' order."""
    calls = []

    def expert(number):
        def run(x):
            calls.append((number, len(x)))
            return x * (number + 1) / 3

        return run

    router = Router(torch.randn(6, 16), Experts(count=6, used=3, normalised=True))
    block = ExpertMlp(router, [expert(number) for number in range(6)])
    x = torch.randn(40, 16, dtype=torch.bfloat16)
    together = block(x)
    assert together.dtype == torch.bfloat16
    assert [number for number, _ in calls] == sorted({number for number, _ in calls})
    assert sum(rows for _, rows in calls) == 3 * 40
    for row in range(40):
        assert torch.equal(block(x[row : row + 1])[0], together[row])


def test_stages_are_balanced_by_what_a_row_is_multiplied_by(tmp_path):
    """A head that is small beside all experts is large beside those that a row takes."""
    config = {**SMALL, **QWEN, "num_hidden_layers": 12, "num_experts_per_tok": 1}
    config |= {"num_experts": 64, "vocab_size": 12_000}
    spec = spec_of(tmp_path, "Qwen3MoeForCausalLM", config)
    mlp = 3 * 64 * 32
    assert spec.layer_parameters - spec.active_layer_parameters == 63 * mlp
    assert spec.active_parameters == 12 * spec.active_layer_parameters + 64 * 12_000
    (_, middle), (_, last) = split_layers(spec, 2)
    assert middle > last - middle
    dense = msgspec.structs.replace(spec, experts=None, intermediate=64 * 32)
    assert split_layers(dense, 2) == [(0, 6), (6, 12)]


def test_how_many_experts_some_rows_take_together():
    experts = Experts(count=8, used=2, normalised=True)
    assert experts.taken(1) == 2
    assert experts.taken(2) == pytest.approx(2 + 2 * 6 / 8)
    assert experts.taken(1000) == pytest.approx(8)
