"""Mixtures of experts shared by tensor ranks: every expert is cut like an MLP, and the tokens and
log-probabilities are those of transformers and of one rank."""

from __future__ import annotations

import logging

import msgspec
import pytest
import torch
from gguf_files import convert
from stage_driver import GREEDY, Driver
from test_gguf_experts import FILES
from tiny_experts import made, quantised

from medha_actors.config import ModelLoadingConfig
from medha_actors.errors import ModelError
from medha_actors.messages import SamplingParams
from medha_actors.model.gguf_blocks import Q4_K, Q5_0, Q6_K, Q8_0
from medha_actors.model.kernels import KernelDecoder, cpu
from medha_actors.model.rank_weights import RankWeights
from medha_actors.model.shapes import tensor_shapes
from medha_actors.model.spec import load_spec
from medha_actors.model.weights import open_weights
from medha_actors.model_shares import Range, shares_of
from medha_actors.model_spec import Experts

# what four ranks share in parts which the kernels take
SIZES = {"head_dim": 32, "vocab_size": 256}
WIDTHS = {
    "mixtral": SIZES | {"intermediate_size": 128},
    "qwen3-moe": SIZES | {"moe_intermediate_size": 128},
    "qwen2-moe": SIZES
    | {"moe_intermediate_size": 128, "shared_expert_intermediate_size": 256},
}


@pytest.fixture(scope="module", params=WIDTHS)
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = made(request.param, **WIDTHS[request.param])
    model.save_pretrained(folder)
    return model, ModelLoadingConfig(model_source=str(folder))


def tokens(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(208, (count,), generator=generator).tolist()


@pytest.mark.parametrize(
    ("ranks", "stages", "groups", "cutoffs"),
    [(2, 1, 1, ()), (2, 2, 2, (64,)), (4, 2, 1, ())],
)
@pytest.mark.parametrize(
    ("attention", "team"), [("auto", "board"), ("auto", "threads"), ("sdpa", "board")]
)
def test_every_grid_gives_the_log_probabilities_of_transformers(
    model, check, ranks, stages, groups, cutoffs, attention, team
):
    whole, config = model
    grid = {"stages": stages, "groups": groups, "cutoffs": cutoffs, "ranks": ranks}
    driver = Driver(config, **grid, page_tokens=64, attention=attention, team=team)
    if cpu.native():
        kernels = isinstance(driver.pipelines[0][0].decoder, KernelDecoder)
        assert kernels == (attention == "auto")
    for seed, length in enumerate((150, 1, 17)):
        driver.add(str(length), tokens(length, seed), GREEDY)
    driver.generate({"150": 6, "1": 9, "17": 7}, 60)
    driver.drop("17")
    driver.generate({"150": 8, "17": 12}, 13)
    for name in list(driver.requests):
        check(driver.remove(name), whole)


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_drawn_tokens_are_those_of_one_rank(model, attention):
    _, config = model
    found = []
    for ranks in (1, 2, 4):
        driver = Driver(config, ranks=ranks, attention=attention)
        for seed in range(3):
            sampling = SamplingParams(max_tokens=1, temperature=0.9, seed=seed)
            driver.add(str(seed), tokens(30, seed), sampling)
        driver.generate({"0": 20, "1": 20, "2": 20}, 40)
        found.append([driver.requests[str(seed)].tokens for seed in range(3)])
    assert found[0] == found[1] == found[2]


def test_more_rows_than_the_board_holds_at_once(tmp_path, check):
    """Of 2,048 numbers each it holds 128: every block of rows is routed by itself."""
    sizes = {"hidden_size": 2048, "num_experts": 4, "num_experts_per_tok": 2}
    sizes |= {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 128}
    whole = made("qwen2-moe", **sizes, initializer_range=0.03)
    whole.save_pretrained(tmp_path)
    driver = Driver(ModelLoadingConfig(model_source=str(tmp_path)), ranks=2)
    driver.add("r", tokens(200, 1), GREEDY)
    driver.generate({"r": 3}, 200)
    check(driver.remove("r"), whole)


def test_the_parts_of_all_ranks_are_the_whole(model):
    _, config = model
    spec = load_spec(config)
    whole = open_weights(spec, config)
    shares = shares_of(spec, 2)
    for name in tensor_shapes(spec):
        if ".layers.1.mlp." not in name:
            continue
        parts = [
            RankWeights(whole, spec, share, rank == 0).tensor(name, torch.float32)
            for rank, share in enumerate(shares)
        ]
        expected = whole.tensor(name, torch.float32)
        if ".mlp.gate." in name or "shared_expert_gate" in name:
            assert torch.equal(parts[0], expected)
            assert torch.equal(parts[1], expected)
        else:
            axis = 1 if "down_proj" in name else 0
            assert torch.equal(torch.cat(parts, axis), expected), name


def test_the_shared_expert_has_columns_of_its_own():
    experts = Experts(count=4, used=2, normalised=True, shared=1024)
    dense = load_spec(ModelLoadingConfig())
    spec = msgspec.structs.replace(dense, experts=experts, intermediate=64)
    shares = shares_of(spec, 2)
    assert [share.intermediate for share in shares] == [Range(0, 32), Range(32, 64)]
    assert [share.shared for share in shares] == [Range(0, 512), Range(512, 1024)]
    assert [share.spec(spec).experts.shared for share in shares] == [512, 512]
    assert [share.spec(spec).experts.count for share in shares] == [4, 4]
    assert [share.shared for share in shares_of(spec, 1)] == [Range(0, 1024)]
    assert shares_of(spec, 1)[0].spec(spec) == spec
    few = msgspec.structs.replace(experts, shared=2)
    with pytest.raises(
        ModelError, match="but the model's shared expert's intermediate size is 2"
    ):
        shares_of(msgspec.structs.replace(spec, experts=few), 3)


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("family", FILES)
def test_gguf_files(tmp_path, check, family, attention):
    whole = made(family)
    name, keys = FILES[family]
    path = tmp_path / "tiny.gguf"
    convert(whole, path, name, keys=keys)
    driver = Driver(
        ModelLoadingConfig(model_source=str(path)), ranks=2, attention=attention
    )
    driver.add("r", list(range(1, 100)), GREEDY)
    driver.generate({"r": 8}, 40)
    check(driver.remove("r"), whole)


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
@pytest.mark.parametrize("kinds", [(Q4_K, Q6_K), (Q8_0, Q5_0)], ids=["K", "32"])
def test_quantised_experts_are_cut(tmp_path, check, kinds, attention, caplog):
    """256 columns are one block of K-quants: cut, down is dequantised, and one line says so for all
    experts of a layer."""
    path = tmp_path / "quantised.gguf"
    whole = quantised(path, *kinds)
    with caplog.at_level(logging.WARNING, "medha.model"):
        driver = Driver(
            ModelLoadingConfig(model_source=str(path)), ranks=2, attention=attention
        )
    decoder = driver.pipelines[0][0].decoder
    if isinstance(decoder, KernelDecoder):
        assert len(caplog.messages) == (
            4 if kinds == (Q4_K, Q6_K) else 0
        )  # layers times ranks
        assert all("experts.0.down_proj" in line for line in caplog.messages)
        (gate_up, _) = decoder.layers.weights[0].experts.mlps[0]
        assert {matrix.layout.name for matrix in gate_up} == {
            "Q4_K" if kinds[0] == Q4_K else "Q8_0"
        }
    driver.add("r", list(range(1, 100)), GREEDY)
    driver.generate({"r": 6}, 40)
    check(driver.remove("r"), whole)
