"""Stages on a GPU against the same stages on the CPU in float32: each attention that works there,
SPP, KVP and tensor ranks."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from medha_actors.config import ModelLoadingConfig, RandomWeights
from medha_actors.messages import Move, StepMessage
from medha_actors.model.backend import ATTENTIONS
from medha_actors.model.host_tier import HostTier
from tests.model.stage_driver import GREEDY, Driver

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)

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
    {"stages": 2, "ranks": 2, "team": "threads"},
]
PAGE_TOKENS = 256  # a size that every attention takes


@cache
def obstacle(attention, dtype):
    return ATTENTIONS[attention].obstacle(torch.device("cuda"), dtype, PAGE_TOKENS)


def require(attention, dtype):
    found = obstacle(attention, dtype)
    if found:
        pytest.skip(f"attention {attention} {found}")


@cache
def expected():
    """What the CPU makes of it in float32."""
    return drive("cpu", torch.float32, "sdpa")


def drive(device, dtype, attention, **grid):
    """Prompts of 700, 20 and 1 tokens together; per request the generated tokens and prompt
    log-probabilities."""
    options = {
        "device": device,
        "dtype": dtype,
        "attention": attention,
        "pages": 12,
        "page_tokens": PAGE_TOKENS,
    }
    driver = Driver(CONFIG, **options, **grid)
    if device == "cuda" and not grid:
        driver.pipelines[0][
            0
        ].warm_up()  # decodes are replayed then, where there are graphs
    for seed, length in enumerate((700, 20, 1)):
        tokens = torch.randint(
            1000, (length,), generator=torch.Generator().manual_seed(seed)
        ).tolist()
        driver.add(str(length), tokens, GREEDY)
    driver.generate({"700": 6, "20": 8, "1": 8}, 200)
    driver.drop("20")
    driver.generate({"20": 12}, 200)
    return {
        name: (
            r.tokens,
            torch.tensor([r.prompt_logprobs[i][0] for i in range(1, r.prompt)]),
        )
        for name, r in driver.requests.items()
    }


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("attention", ["triton", "sdpa"])
def test_float32_gives_the_cpus_tokens_and_log_probabilities(attention, grid):
    require(attention, torch.float32)
    found = drive("cuda", torch.float32, attention, **grid)
    for name, (tokens, logprobs) in expected().items():
        assert found[name][0] == tokens
        torch.testing.assert_close(found[name][1], logprobs, atol=1e-3, rtol=0)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("attention", list(ATTENTIONS))
def test_16_bits_are_close(attention, dtype, grid):
    require(attention, dtype)
    found = drive("cuda", dtype, attention, **grid)
    for name, (_, logprobs) in expected().items():
        if len(logprobs):
            assert (found[name][1] - logprobs).abs().mean() < 0.05


@pytest.mark.parametrize("attention", list(ATTENTIONS))
def test_pages_go_to_pinned_memory_and_back_beside_the_computing(attention):
    """Saved and written over in one step, loaded in the next, read in the one after: without a
    pause for the host."""
    require(attention, torch.bfloat16)

    def tokens(away):
        options = {"device": "cuda", "dtype": torch.bfloat16, "attention": attention}
        driver = Driver(CONFIG, **options, pages=12, page_tokens=PAGE_TOKENS)
        stage = driver.pipelines[0][0]
        stage.tier = HostTier(stage.decoder.cells(), 4)
        driver.add("r", list(range(600)), GREEDY)
        driver.generate({"r": 2}, 600)
        if away:
            pages = driver.requests["r"].pages[0]
            with torch.inference_mode():
                for load in (False, True):
                    moves = [Move(page, slot, load) for slot, page in enumerate(pages)]
                    stage.step(StepMessage(0, (), moves=tuple(moves)), None, None)
                    if not load:
                        stage.decoder.fill(12)
        driver.generate({"r": 8}, 600)
        return driver.requests["r"].tokens

    assert tokens(away=True) == tokens(away=False)
