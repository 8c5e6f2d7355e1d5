"""Weights that are brought to a device are those that the host reads."""

import os

import pytest
import torch
from safetensors.torch import save_file

from medha_actors.config import ModelLoadingConfig, RandomWeights
from medha_actors.errors import ModelError
from medha_actors.files.stored import Stored
from medha_actors.model.cuda.upload import Uploader
from medha_actors.model.cuda.weights import DeviceWeights
from medha_actors.model.cut import WHOLE, Cut
from medha_actors.model.shapes import tensor_shapes
from medha_actors.model.spec import load_spec
from medha_actors.model.weights import RandomWeights as Drawn
from medha_actors.model.weights import SafetensorsWeights, open_weights
from medha_actors.model_shares import Range

TINY = RandomWeights(
    layers=1,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    intermediate=96,
    vocabulary=100,
    seed=3,
)


def compare(weights, spec, names, device, dtype):
    second_head = Range(spec.head_dim, 2 * spec.head_dim)
    parts = (WHOLE, Cut("rows", second_head), Cut("columns", Range(32, 64)))
    with DeviceWeights(weights, device) as there:
        for name in names:
            assert name in there
            cuts = parts if "proj" in name and "weight" in name else (WHOLE,)
            for cut in cuts:
                found = there.tensor(name, dtype, cut)
                assert found.device.type == device.type
                assert torch.equal(found.cpu(), weights.tensor(name, dtype, cut)), (
                    name,
                    cut,
                )


def test_of_a_gguf_file(device):
    """The embedded model: blocks of two kinds, plain norms, reordered queries and keys."""
    config = ModelLoadingConfig()
    spec = load_spec(config)
    first = [
        name
        for name in tensor_shapes(spec)
        if ".layers." not in name or ".layers.0." in name
    ]
    for dtype in (torch.float32, torch.bfloat16):
        compare(open_weights(spec, config), spec, first[1:], device, dtype)


@pytest.mark.parametrize(
    "stored", [torch.float32, torch.bfloat16, torch.float16], ids=str
)
def test_of_safetensors(stored, tmp_path, device):
    spec = load_spec(ModelLoadingConfig(model_source="random", random=TINY))
    drawn = Drawn(spec, 3)
    names = list(tensor_shapes(spec))
    half = len(names) // 2
    for number, some in enumerate((names[:half], names[half:])):
        tensors = {name: drawn.tensor(name, stored) for name in some}
        save_file(tensors, tmp_path / f"model-{number}.safetensors", {"format": "pt"})
    weights = SafetensorsWeights(tmp_path, spec)
    compare(weights, spec, names, device, torch.bfloat16)
    weights.files.pop("model.norm.weight")
    with (
        DeviceWeights(weights, device) as there,
        pytest.raises(ModelError, match="no tensor"),
    ):
        there.tensor("model.norm.weight", torch.float32)


def test_in_many_parts(tmp_path, device):
    path = tmp_path / "bytes"
    path.write_bytes(os.urandom(100_000))
    uploader = Uploader(device, chunk=1000)
    for offset, size in ((0, 100_000), (17, 50_001), (99_999, 1), (5, 0)):
        found = uploader.bring(Stored(path, offset, size))
        assert bytes(found.cpu().numpy()) == path.read_bytes()[offset : offset + size]
    assert uploader.bytes == 150_002
    with pytest.raises(ModelError, match="ends at byte 100000"):
        uploader.bring(Stored(path, 0, 100_001))
    with pytest.raises(ModelError, match="cannot be read"):
        uploader.bring(Stored(tmp_path / "none", 0, 1))
    uploader.close()
