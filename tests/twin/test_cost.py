"""The cost model: from data sheets to the seconds that can be checked by hand."""

import json

import pytest

from loadgen.errors import LoadgenError
from loadgen.twin.cost import (
    StageCost,
    kv_token_bytes,
    layers_of,
    profile_of,
    weight_bytes,
)
from loadgen.twin.hardware import HARDWARE, hardware_of
from loadgen.twin.models import MODELS, model_of
from medha_actors.core.group_load import GroupLoad
from medha_actors.core.predictor import ExecutionModel
from medha_actors.model_spec import split_layers

LLAMA = model_of("llama-3-8b")


def test_known_sizes():
    assert LLAMA.parameters == pytest.approx(8.03e9, rel=0.01)
    assert model_of("llama-3-70b").parameters == pytest.approx(70.6e9, rel=0.01)
    assert model_of("smollm2-135m").parameters == pytest.approx(134.5e6, rel=0.01)
    assert kv_token_bytes(LLAMA, hardware_of("h100"), 1, 1) == 131_072
    assert weight_bytes(LLAMA, hardware_of("h100"), 1, 1) == pytest.approx(
        16.06e9, rel=0.01
    )


def test_a_decode_reads_every_weight_once():
    """8B on one H100: 15 GB without the embeddings at 3.0 TB/s, and the launches of 32 layers."""
    model = ExecutionModel(profile_of(LLAMA, hardware_of("h100")))
    seconds = model.base(GroupLoad().with_decode(0))
    assert 15.0e9 / 3.015e12 < seconds < 1.25 * 15.0e9 / 3.015e12


def test_a_large_chunk_computes_at_the_speed_of_the_units():
    cost = StageCost(model=LLAMA, device=hardware_of("h100"), layers=32, tp=1)
    flops = 2 * 32 * LLAMA.layer_parameters * 4096
    assert 0.7 * 989.4e12 < flops / cost.linear_s(4096) < 0.8 * 989.4e12


@pytest.mark.parametrize("name", sorted(HARDWARE))
@pytest.mark.parametrize("model", sorted(MODELS))
def test_costs_rise_with_every_span(name, model):
    execution = ExecutionModel(profile_of(model_of(model), hardware_of(name), stages=2))
    load = GroupLoad()
    before = 0.0
    for rows in (1, 16, 100, 700, 3000):
        load = load.with_prefill(rows, 5000, groups=2).with_decode(1000)
        assert execution.base(load) > before
        before = execution.base(load)


def test_tensor_parallelism_divides_work_and_adds_exchanges():
    one, eight = (
        StageCost(model=LLAMA, device=hardware_of("h100"), layers=32, tp=tp)
        for tp in (1, 8)
    )
    assert 2.5 < one.linear_s(2048) / eight.linear_s(2048) < 8
    assert one.pair_s == pytest.approx(8 * eight.pair_s)
    assert one.kv_read_s == pytest.approx(8 * eight.kv_read_s)
    sixteen = StageCost(model=LLAMA, device=hardware_of("h100"), layers=32, tp=16)
    assert sixteen.kv_read_s == eight.kv_read_s  # 8 KV heads


def test_the_rank_with_most_of_the_model_counts():
    """Of 9 heads and 3 KV heads one rank of two gets 6 and 2, as in the server."""
    one, two = (
        StageCost(
            model=model_of("smollm2-135m"),
            device=hardware_of("cpu-2core"),
            layers=30,
            tp=tp,
        )
        for tp in (1, 2)
    )
    assert one.pair_s == pytest.approx(9 / 6 * two.pair_s)
    assert one.kv_read_s == pytest.approx(3 / 2 * two.kv_read_s)
    with pytest.raises(
        LoadgenError, match=r"parallel.tp is 4, but the model has 9 heads"
    ):
        profile_of(model_of("smollm2-135m"), hardware_of("cpu-2core"), tp=4)


@pytest.mark.parametrize("model", sorted(MODELS))
@pytest.mark.parametrize("stages", [1, 2, 3, 8, 16])
def test_layers_are_split_as_the_server_splits_them(model, stages):
    served = model_of(model)
    parts = split_layers(served, stages)
    assert layers_of(served, stages) == [stop - start for start, stop in parts]
    assert sum(layers_of(served, stages)) == served.layers


def test_more_stages_than_layers_are_refused():
    with pytest.raises(
        LoadgenError, match="31 stages, but smollm2-135m has only 30 layers"
    ):
        layers_of(model_of("smollm2-135m"), 31)


def test_overlapped_reading_counts_once():
    profile = profile_of(LLAMA, hardware_of("h100")).stages[0]
    assert profile.overlapped
    small, large = (GroupLoad().with_prefill(rows, 1_000_000) for rows in (8, 2048))
    model = ExecutionModel(profile_of(LLAMA, hardware_of("h100")))
    linear = {rows: model.base(GroupLoad().with_prefill(rows, 0)) for rows in (8, 2048)}
    assert model.base(small) - linear[8] == pytest.approx(
        profile.prefill_kv_s * 1e6, rel=0.01
    )
    assert model.base(large) - linear[2048] == pytest.approx(
        profile.pair_s * 2048e6, rel=0.01
    )


def test_a_hugging_face_config(tmp_path):
    config = {
        "num_hidden_layers": 4,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 100,
        "max_position_embeddings": 512,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    dims = model_of(str(tmp_path))
    assert (dims.kv_heads, dims.head_dim, dims.max_positions) == (4, 16, 512)


def test_a_mixture_of_experts_takes_all_of_the_memory_and_a_part_of_the_time():
    """Qwen3-30B-A3B: a decode reads 3 billion weights, a batch nearly all, and neither computes
    with more than 3 a row."""
    qwen = model_of("qwen3-30b-a3b")
    assert qwen.parameters == pytest.approx(30.5e9, rel=0.01)
    assert qwen.active_parameters == pytest.approx(3.0e9, rel=0.05)
    assert model_of("mixtral-8x7b").parameters == pytest.approx(46.7e9, rel=0.01)
    assert model_of("mixtral-8x7b").active_parameters == pytest.approx(12.7e9, rel=0.02)
    device = hardware_of("h100")
    assert weight_bytes(qwen, device, 1, 1) == pytest.approx(61e9, rel=0.01)
    cost = StageCost(model=qwen, device=device, layers=48, tp=1)
    launches = 48 * 14 * device.kernel_s
    read_s = device.weight_bytes / (device.memory_speed * device.memory_share)
    active = 48 * qwen.active_layer_parameters
    held = 48 * qwen.layer_parameters
    assert cost.linear_s(1) - launches == pytest.approx(active * read_s, rel=0.02)
    assert 0.8 * held * read_s < cost.linear_s(32) < held * read_s + launches
    flops = 2 * active * 8192
    assert 0.5 * 989.4e12 < flops / cost.linear_s(8192) < 989.4e12


def test_a_config_of_a_mixture(tmp_path):
    config = {
        "num_hidden_layers": 4,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 100,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 48,
    }
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    mixture = model_of(str(file))
    assert (mixture.intermediate, mixture.experts.count, mixture.experts.shared) == (
        32,
        8,
        48,
    )
    for change in (
        {"mlp_only_layers": [0]},
        {"decoder_sparse_step": 2},
        {"n_routed_experts": 8},
        {"num_experts_per_tok": 9},
    ):
        file.write_text(json.dumps(config | change))
        with pytest.raises(LoadgenError, match="not a config"):
            model_of(str(file))


@pytest.mark.parametrize("content", ["{", "{}", '{"num_experts": 8}', "[]"])
def test_a_config_that_is_none(tmp_path, content):
    file = tmp_path / "config.json"
    file.write_text(content)
    with pytest.raises(LoadgenError, match="not a config"):
        model_of(str(file))
