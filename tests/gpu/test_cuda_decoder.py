"""The decoder for CUDA on a card: graphs replay what they recorded, nothing in a step waits for the
device, and a layer takes few launches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medha_actors.config import ModelLoadingConfig, RandomWeights
from medha_actors.messages import Span
from medha_actors.model.cuda.step import arrays_of
from medha_actors.model.spec import load_spec
from medha_actors.model.stage import Stage
from medha_actors.model.step_plan import plan_step
from medha_actors.model.team import ALONE

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)

WEIGHTS = RandomWeights(
    layers=4,
    hidden=256,
    heads=8,
    kv_heads=2,
    head_dim=64,
    intermediate=512,
    vocabulary=1000,
    seed=3,
)
CONFIG = ModelLoadingConfig(model_source="random", random=WEIGHTS)
PAGE = 64


@pytest.fixture(scope="module")
def decoder():
    spec = load_spec(CONFIG)
    own = (600, PAGE, "cuda", torch.bfloat16)
    stage = Stage(spec, CONFIG, (0, spec.layers), (0, 1), 0, *own, attention="triton")
    with torch.inference_mode():
        stage.warm_up()
        stage.decoder.fill(600)
        yield stage.decoder


def decodes(rows, context=70):
    """One row of each of so many sequences: ids and plan."""
    names = [str(number) for number in range(rows)]
    tables = {
        name: np.array([2 * place, 2 * place + 1]) for place, name in enumerate(names)
    }
    spans = [Span(name, context, context + 1, b"", 0, context, ()) for name in names]
    return np.arange(rows, dtype=np.int32), plan_step(spans, tables, PAGE)


def chunk(rows):
    """Rows of a prompt, and one of another request."""
    tables = {"a": np.arange(20), "b": np.arange(20, 22)}
    spans = [
        Span("a", 100, 100 + rows, b"", 0, 100, ()),
        Span("b", 9, 10, b"", 0, 9, ()),
    ]
    return np.arange(rows + 1, dtype=np.int32), plan_step(spans, tables, PAGE)


def test_every_graph_gives_what_the_same_launches_give_one_by_one(decoder):
    assert decoder.graphs is not None
    for extent in decoder.graphs.extents:
        ids, plan = decodes(max(1, extent.rows - 1))
        arrays = arrays_of(plan, ids, decoder.attention.plan_work)
        eager = decoder.graphs.eager(arrays, None, extent)[: plan.rows].clone()
        replayed = decoder.graphs.run(arrays, None)
        assert replayed is not None
        assert torch.equal(eager, replayed), extent


def test_a_row_does_not_depend_on_what_fills_the_graph_up(decoder):
    ids, plan = decodes(5)
    first = decoder(ids, plan, None, ALONE)
    others, plan_of_others = decodes(8)
    decoder(others + 7, plan_of_others, None, ALONE)
    assert torch.equal(decoder(ids, plan, None, ALONE), first)


@pytest.mark.parametrize("step", [decodes(3), chunk(200)], ids=["decode", "chunk"])
def test_a_step_does_not_wait(decoder, step):
    ids, plan = step
    decoder.logits(decoder(ids, plan, None, ALONE))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        decoder.clear([500, 501])
        decoder.logits(decoder(ids, plan, None, ALONE))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("step", [decodes(3), chunk(200)], ids=["decode", "chunk"])
def test_a_layer_takes_few_launches(decoder, step, monkeypatch):
    monkeypatch.setattr(decoder, "graphs", None)
    ids, plan = step
    decoder(ids, plan, None, ALONE)
    torch.cuda.synchronize()
    activities = [
        torch.profiler.ProfilerActivity.CPU,
        torch.profiler.ProfilerActivity.CUDA,
    ]
    with torch.profiler.profile(activities=activities) as profile:
        decoder(ids, plan, None, ALONE)
        torch.cuda.synchronize()
    on_device = torch.profiler.DeviceType.CUDA
    names = [event.name for event in profile.events() if event.device_type == on_device]
    cublas = ("splitKreduce", "Memset")  # launches that a product makes of its own
    names = [name for name in names if not any(word in name for word in cublas)]
    per_step = 4  # the copy of the numbers, embedding, angles, the last addition
    assert (len(names) - per_step) / WEIGHTS.layers <= 12, names
