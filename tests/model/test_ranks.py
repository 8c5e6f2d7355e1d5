"""Tensor ranks: a model shared by several gives the tokens and log-probabilities of one, and of
transformers, whatever the stages and KV groups beside."""

from __future__ import annotations

import pytest
import torch
from stage_driver import GREEDY, Driver
from transformers import LlamaConfig, LlamaForCausalLM

from medha_actors.config import ModelLoadingConfig
from medha_actors.messages import SamplingParams
from medha_actors.model.kernels import KernelDecoder, Rehearsal

VOCABULARY = 240
PLAIN = SamplingParams(max_tokens=1, temperature=0.0)
DRAWN = SamplingParams(max_tokens=1, temperature=0.9, top_p=0.95, seed=7)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "head_dim": 32,
}
# by the ranks they are shared by: whole KV heads, uneven ones, and one that two ranks hold
MODELS = {
    "even": LlamaConfig(**SIZES, num_attention_heads=6, num_key_value_heads=6),
    "uneven": LlamaConfig(**SIZES, num_attention_heads=6, num_key_value_heads=3),
    "replicated": LlamaConfig(
        **SIZES,
        num_attention_heads=6,
        num_key_value_heads=1,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(4)
    made = LlamaForCausalLM(MODELS[request.param]).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    made.save_pretrained(folder)
    return made, ModelLoadingConfig(model_source=str(folder))


def tokens(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (count,), generator=generator).tolist()


@pytest.mark.parametrize(
    ("stages", "groups", "cutoffs"), [(1, 1, ()), (2, 2, (37,)), (2, 1, ())]
)
@pytest.mark.parametrize(
    ("ranks", "attention", "team"),
    [(2, "auto", "board"), (3, "auto", "threads"), (3, "sdpa", "board")],
)
def test_every_grid_gives_the_log_probabilities_of_transformers(
    model, check, ranks, stages, groups, cutoffs, attention, team
):
    made, config = model
    grid = {"stages": stages, "groups": groups, "cutoffs": cutoffs, "ranks": ranks}
    driver = Driver(config, **grid, attention=attention, team=team)
    kernels = isinstance(driver.pipelines[0][0].decoder, KernelDecoder)
    assert kernels == (attention == "auto")
    for seed, length in enumerate((93, 1, 20)):
        driver.add(str(length), tokens(length, seed), GREEDY)
    driver.generate({"93": 6, "1": 9, "20": 7}, 13)
    driver.drop("20")
    driver.generate({"93": 9, "20": 12}, 50)
    for name in list(driver.requests):
        check(driver.remove(name), made)


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_greedy_and_drawn_tokens_are_those_of_one_rank(model, attention):
    """Greedy rows ask for the largest logits only, the others for all of them."""
    _, config = model
    found = []
    for ranks in (1, 2, 3):
        driver = Driver(config, ranks=ranks, attention=attention)
        for seed, sampling in enumerate((PLAIN, PLAIN, DRAWN)):
            driver.add(str(seed), tokens(30, seed), sampling)
        driver.generate({"0": 5, "1": 5}, 40)  # greedy ones alone
        driver.generate({"0": 20, "1": 20, "2": 20}, 40)
        found.append([driver.requests[str(seed)].tokens for seed in range(3)])
    assert found[0] == found[1] == found[2]


def test_a_board_adds_up_as_threads_do_bit_for_bit(model):
    _, config = model
    found = []
    for team in ("threads", "board"):
        driver = Driver(config, ranks=3, team=team)
        driver.add("r", tokens(90), GREEDY)
        driver.generate({"r": 8}, 64)
        found.append(driver.remove("r").prompt_logprobs)
    assert found[0] == found[1]


def test_what_is_batched_beside_a_request_changes_nothing(model):
    _, config = model
    found = []
    for others in (0, 3):
        driver = Driver(config, ranks=2)
        driver.add("r", tokens(40), GREEDY)
        for other in range(others):
            driver.add(str(other), tokens(50 + other, other + 1), PLAIN)
        driver.generate({"r": 5, **{str(other): 5 for other in range(others)}}, 16)
        found.append(driver.remove("r").prompt_logprobs)
    assert found[0] == found[1]


def test_a_token_that_is_none_ends_one_request(model, check):
    made, config = model
    driver = Driver(config, ranks=2)
    driver.add("bad", [5, VOCABULARY, 7], GREEDY)
    driver.add("good", tokens(20), GREEDY)
    driver.generate({"bad": 3, "good": 6}, 16)
    assert "token id 240" in driver.failed["bad"]
    check(driver.remove("good"), made)


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_embedded_model_keeps_its_blocks(reference, prompt_of, check, ranks):
    """Quantised matrices are cut, not dequantised; with two ranks one has 6 of its 9 heads."""
    driver = Driver(stages=2, ranks=ranks, pages=8)
    driver.add(
        "r", prompt_of(150), SamplingParams(max_tokens=1, temperature=0.0, logprobs=1)
    )
    driver.generate({"r": 8}, 100)
    check(driver.remove("r"), reference)
    layer = driver.pipelines[0][0].decoder.layers.weights[0]
    kept = {
        matrix.layout.name
        for matrix in (*layer.qkv, *layer.out, *layer.gate_up, *layer.down)
    }
    assert kept == {"Q4_1"}


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_bfloat16_is_close(model, attention):
    _, config = model
    found = []
    for ranks in (1, 3):
        driver = Driver(config, ranks=ranks, dtype=torch.bfloat16, attention=attention)
        driver.add("r", tokens(90), GREEDY)
        driver.generate({"r": 1}, 50)
        entries = [
            entry[0]
            for _, entry in sorted(driver.requests["r"].prompt_logprobs.items())
        ]
        found.append(torch.tensor(entries))
    assert (found[0] - found[1]).abs().mean() < 0.1


@pytest.mark.parametrize("attention", ["auto", "sdpa"])
def test_a_rank_warms_up_alone(model, attention):
    _, config = model
    driver = Driver(config, stages=2, ranks=2, attention=attention)
    for (_, rank), line in driver.lines.items():
        for stage, _ in line:
            stage.warm_up(Rehearsal(rank, 2, driver.spec.hidden))
            assert not stage.tables
