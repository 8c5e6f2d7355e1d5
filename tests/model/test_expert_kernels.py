"""Experts on the CPU kernels: what a router says, that matrices stay quantised, and that company
changes nothing. (Against transformers: test_experts.py, test_gguf_experts.py.)"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from stage_driver import GREEDY, Driver
from tiny_experts import quantised

from medha_actors.config import ModelLoadingConfig
from medha_actors.messages import SamplingParams
from medha_actors.model.experts import Router
from medha_actors.model.gguf_blocks import Q4_K, Q6_K
from medha_actors.model.kernels import cpu
from medha_actors.model.kernels.decoder import KernelDecoder
from medha_actors.model.kernels.experts import choose
from medha_actors.model.kernels.layers import MODEL
from medha_actors.model_spec import Experts


@pytest.fixture(autouse=True)
def _on_every_machine(monkeypatch):
    monkeypatch.setattr(cpu, "native", lambda: True)


@pytest.fixture
def file(tmp_path):
    """A model, and its file with experts in K-quants."""
    path = tmp_path / "quantised.gguf"
    return quantised(path, Q4_K, Q6_K), path


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("shared", [0, 32])
def test_a_choice_is_that_of_torch(normalised, shared):
    """Of equals the first, too."""
    experts = Experts(count=12, used=4, normalised=normalised, shared=shared)
    width = 13 if shared else 12
    ratings = torch.randn(50, width) * 3
    ratings[0] = 1.0
    ratings[1, 5:9] = 7.0
    router = Router(torch.eye(width), experts)
    expected_numbers, expected_weights = router(ratings)
    model = np.zeros(1, MODEL)
    model[0]["experts"] = 12
    model[0]["used"] = 4
    model[0]["normalised"] = normalised
    model[0]["shared"] = int(shared > 0)
    found = SimpleNamespace(
        numbers=np.zeros(expected_numbers.shape, np.int64),
        weights=np.zeros(expected_weights.shape, np.float32),
    )
    padded = np.zeros((50, 16), np.float32)
    padded[:, :width] = ratings.numpy()
    choose(model[0], padded, found.numbers, found.weights)
    assert np.array_equal(found.numbers, expected_numbers.numpy())
    np.testing.assert_allclose(found.weights, expected_weights.numpy(), rtol=1e-5)


def test_ratings_that_are_not_numbers_choose_some_expert():
    """So that the request's logits are no numbers, which ends it alone, and nothing else breaks."""
    model = np.zeros(1, MODEL)
    model[0]["experts"] = 12
    model[0]["used"] = 4
    numbers = np.full((2, 4), -1)
    weights = np.zeros((2, 4), np.float32)
    ratings = np.full((2, 16), np.nan, np.float32)
    ratings[1] = np.inf
    choose(model[0], ratings, numbers, weights)
    assert ((numbers >= 0) & (numbers < 12)).all()
    assert np.isnan(weights).all()


def test_experts_stay_quantised(file):
    _, path = file
    driver = Driver(ModelLoadingConfig(model_source=str(path)), dtype=torch.bfloat16)
    decoder = driver.pipelines[0][0].decoder
    assert isinstance(decoder, KernelDecoder)
    for layer in decoder.layers.weights:
        assert len(layer.experts.mlps) == 6
        for (gate, up), (down,) in layer.experts.mlps:
            assert (gate.outputs, gate.inputs, gate.layout.name) == (256, 256, "Q4_K")
            assert (up.outputs, up.layout.name) == (256, "Q4_K")
            assert (down.outputs, down.inputs, down.layout.name) == (256, 256, "Q6_K")


def test_bfloat16_is_close(file):
    model, path = file
    driver = Driver(ModelLoadingConfig(model_source=str(path)), dtype=torch.bfloat16)
    driver.add("r", list(range(1, 100)), GREEDY)
    driver.generate({"r": 1}, 40)
    found = driver.remove("r").prompt_logprobs
    with torch.inference_mode():
        expected = model(torch.arange(1, 100)[None]).logits[0].log_softmax(-1)
    differences = [
        abs(found[place][0] - expected[place - 1, place + 1].item())
        for place in range(1, 99)
    ]
    assert np.median(differences) < 0.1  # where a row is sent elsewhere by a hair, more


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_chunks_and_company_change_no_bit(file, dtype):
    _, path = file
    wanted = SamplingParams(
        max_tokens=1, temperature=0.0, logprobs=3, prompt_logprobs=2
    )
    driver = Driver(ModelLoadingConfig(model_source=str(path)), stages=2, dtype=dtype)
    found = []
    for chunk, others in ((100, 0), (64, 0), (17, 3)):
        driver.add("it", list(range(1, 91)), wanted)
        for number in range(others):
            driver.add(str(number), list(range(number, 60 + 20 * number)), wanted)
        driver.generate(
            {"it": 6, **{str(number): 12 for number in range(others)}}, chunk
        )
        for number in range(others):
            driver.remove(str(number))
        done = driver.remove("it")
        found.append((done.sampled, done.prompt_logprobs))
    assert found[0] == found[1] == found[2]
