"""How many launches a layer takes, counted without a device: kernels of our own, and every operator
of torch that computes."""

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from medha_actors.config import ModelLoadingConfig, RandomWeights
from medha_actors.messages import Span
from medha_actors.model.cuda.decoder import CudaDecoder
from medha_actors.model.cuda.launch import Launcher
from medha_actors.model.layers import Loader
from medha_actors.model.spec import load_spec
from medha_actors.model.step_plan import plan_step
from medha_actors.model.team import ALONE
from medha_actors.model.weights import open_weights
from tests.model.cuda.paged_reference import PagedReference

FREE = (
    "view",
    "reshape",
    "empty",
    "new_empty",
    "empty_like",
    "slice",
    "detach",
    "alias",
    "unbind",
)


class SilentAttention(PagedReference):
    """Its own launches are counted on a card."""

    def __call__(self, q, pool, step, out, lse, partials):
        self.calls += 1


class Counted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.launches = Counter()

    def __torch_dispatch__(self, function, types, given=(), named=None):
        name = function.overloadpacket.__name__
        if name not in FREE:
            self.launches[name] += 1
        return function(*given, **(named or {}))


def count(layers, rows, monkeypatch):
    weights = RandomWeights(
        layers=layers,
        hidden=64,
        heads=4,
        kv_heads=2,
        head_dim=16,
        intermediate=96,
        vocabulary=100,
        seed=3,
    )
    config = ModelLoadingConfig(model_source="random", random=weights)
    spec = load_spec(config)
    loader = Loader(
        open_weights(spec, config), spec, torch.device("cpu"), torch.float32
    )
    own = (4, 16, loader.embedding(), SilentAttention())
    decoder = CudaDecoder(loader, (0, layers), False, *own)
    span = Span("a", 0, rows, b"", 0, 0, ())
    plan = plan_step([span], {"a": np.arange(4)}, 16)
    counted = Counted()

    def launched(self, *given):
        counted.launches["triton"] += 1

    monkeypatch.setattr(Launcher, "__call__", launched)
    with torch.inference_mode(), counted:
        decoder(np.zeros(rows, np.int32), plan, None, ALONE)
    counted.launches["attention"] = decoder.attention.calls
    return counted.launches


@pytest.mark.parametrize("rows", [1, 20])
def test_a_layer_takes_nine_launches_and_attention(rows, monkeypatch):
    one = count(1, rows, monkeypatch)
    three = count(3, rows, monkeypatch)
    layer = {
        name: (three[name] - one[name]) / 2 for name in three if three[name] > one[name]
    }
    assert layer.pop("triton") == 4
    assert layer.pop("attention") == 1
    assert sum(layer.values()) == 4, layer  # the matrices
    # a step's own: embedding, angles; the numbers' copy and the last addition
    assert one["triton"] - 4 == 2
    assert sum(one.values()) - 9 == 4, one
