"""Stages on a GPU against the same stages on the CPU in float32: SDPA, flash-attn where installed,
SPP and KVP."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from medha_actors.config import ModelLoadingConfig, RandomWeights
from tests.model.stage_driver import GREEDY, Driver

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

WEIGHTS = RandomWeights(
    layers=3,
    hidden=256,
    heads=8,
    kv_heads=2,
    head_dim=64,
    intermediate=512,
    vocabulary=1000,
    seed=3,
)
CONFIG = ModelLoadingConfig(model_source="random", random=WEIGHTS)
GRIDS = [
    {},
    {"stages": 3},
    {"groups": 2, "cutoffs": (300,)},
    {"stages": 2, "groups": 3, "cutoffs": (256, 500)},
]


def drive(device, dtype, attention, **grid):
    """Prompts of 700, 20 and 1 tokens together; per request the generated tokens and prompt
    log-probabilities."""
    options = {
        "device": device,
        "dtype": dtype,
        "attention": attention,
        "pages": 12,
        "page_tokens": 256,
    }
    driver = Driver(CONFIG, **options, **grid)
    for seed, length in enumerate((700, 20, 1)):
        tokens = torch.randint(
            1000, (length,), generator=torch.Generator().manual_seed(seed)
        ).tolist()
        driver.add(str(length), tokens, GREEDY)
    driver.generate({"700": 6, "20": 8, "1": 8}, 200)
    driver.drop("20")
    driver.generate({"20": 12}, 200)
    return {
        name: (r.tokens, torch.tensor([r.prompt_logprobs[i][0] for i in range(1, r.prompt)]))
        for name, r in driver.requests.items()
    }


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_float32_gives_the_cpus_tokens_and_log_probabilities(grid):
    expected, found = (
        drive("cpu", torch.float32, "sdpa"),
        drive("cuda", torch.float32, "sdpa", **grid),
    )
    for name, (tokens, logprobs) in expected.items():
        assert found[name][0] == tokens
        torch.testing.assert_close(found[name][1], logprobs, atol=1e-3, rtol=0)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "flash_attn"])
def test_16_bits_are_close(attention, dtype, grid):
    if attention == "flash_attn" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    expected, found = drive("cpu", torch.float32, "sdpa"), drive("cuda", dtype, attention, **grid)
    for name, (_, logprobs) in expected.items():
        if len(logprobs):
            assert (found[name][1] - logprobs).abs().mean() < 0.05
