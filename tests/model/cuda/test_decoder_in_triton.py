"""Stages on the decoder for CUDA, its kernels in the interpreter, against torch's operators."""

import msgspec
import pytest
import torch

from medha_actors.config import ModelLoadingConfig, RandomWeights
from medha_actors.model import stage as stage_module
from medha_actors.model import weights as weights_module
from medha_actors.model.spec import load_spec
from medha_actors.model_spec import Experts, Rope
from tests.model import stage_driver
from tests.model.cuda import doubles
from tests.model.stage_driver import GREEDY, Driver

WEIGHTS = RandomWeights(
    layers=2,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    intermediate=96,
    vocabulary=100,
    seed=3,
)
CONFIG = ModelLoadingConfig(model_source="random", random=WEIGHTS)
GRIDS = [
    {},
    {"stages": 2},
    {"groups": 2, "cutoffs": (20,)},
    {"ranks": 2, "team": "threads"},
]


def drive(**grid):
    """A prompt of 40 tokens in chunks beside short ones, then decodes; what each request got, and
    the driver."""
    options = {
        "dtype": torch.float32,
        "attention": "sdpa",
        "pages": 12,
        "page_tokens": 16,
    }
    driver = Driver(CONFIG, **options, **grid)
    for line in driver.lines.values():
        for stage, _ in line:
            with torch.inference_mode():
                stage.decoder.prepare()
    for seed, length in enumerate((40, 9, 1)):
        order = torch.Generator().manual_seed(seed)
        driver.add(
            str(length), torch.randint(100, (length,), generator=order).tolist(), GREEDY
        )
    driver.generate({"40": 2, "9": 3, "1": 3}, 24)
    found = {}
    for name, request in driver.requests.items():
        logprobs = [request.prompt_logprobs[i][0] for i in range(1, request.prompt)]
        found[name] = (request.tokens, torch.tensor(logprobs))
    return found, driver


def compare(monkeypatch, **grid):
    expected, _ = drive()
    monkeypatch.setattr(stage_module, "build_decoder", doubles.build)
    found, driver = drive(**grid)
    for name, (tokens, logprobs) in expected.items():
        assert found[name][0] == tokens
        torch.testing.assert_close(found[name][1], logprobs, atol=1e-5, rtol=0)
    return driver


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_tokens_and_log_probabilities_are_those_of_torch(grid, monkeypatch):
    driver = compare(monkeypatch, **grid)
    for stage in driver.pipelines[0]:
        graphs = stage.decoder.graphs
        assert (graphs is None) == ("ranks" in grid)


FAMILIES = {
    "qwen3": {"architecture": "qwen3", "qk_norm": True, "tied_head": False},
    "qwen2": {"architecture": "qwen2", "qkv_bias": True},
    "biases": {"o_bias": True, "mlp_bias": True, "qkv_bias": True},
    "yarn": {"rope": Rope(kind="yarn", factor=4.0, original_max_positions=64)},
    "experts": {"experts": Experts(count=4, used=2, normalised=True, shared=32)},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family, monkeypatch):
    spec = msgspec.structs.replace(load_spec(CONFIG), **FAMILIES[family])
    monkeypatch.setattr(stage_driver, "load_spec", lambda config: spec)
    monkeypatch.setattr(weights_module.RandomWeights, "tensor", drawn)
    compare(monkeypatch)


def drawn(self, name, dtype, cut=None):
    """Norms and biases that show whether they are used."""
    shape = self.shapes[name]
    order = torch.Generator().manual_seed(sum(name.encode()))
    values = torch.randn(shape, generator=order) * (shape[-1] ** -0.5)
    return (values + 1 if "norm" in name else values).to(dtype)


def test_cleared_pages_are_zero_and_the_cells_are_the_pool(monkeypatch):
    monkeypatch.setattr(stage_module, "build_decoder", doubles.build)
    driver = Driver(CONFIG, attention="sdpa", pages=5)
    decoder = driver.pipelines[0][0].decoder
    with torch.inference_mode():
        decoder.fill(4)
        decoder.clear([1, 3])
        cells = decoder.cells()[0]
    assert cells.shape == (4, 5, 2 * 16 * 16)
    assert cells.any(-1).all(0).tolist() == [True, False, True, False, False]
