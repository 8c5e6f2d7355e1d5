"""The kernels between the matrix products against torch's operators."""

import pytest
import torch
import torch.nn.functional as F

from medha_actors.model.cuda import fused
from medha_actors.model.rope import Rotary, rotate
from medha_actors.model_spec import Rope

ROPES = [
    Rope(),
    Rope(kind="linear", factor=2.0),
    Rope(kind="dynamic", factor=4.0, original_max_positions=64),
    Rope(kind="llama3", factor=8.0, original_max_positions=64),
    Rope(kind="yarn", factor=4.0, original_max_positions=64),
]


@pytest.fixture(autouse=True)
def _seed(device):
    torch.manual_seed(5)
    with device:
        yield


def close(found, expected):
    assert found.dtype == expected.dtype
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}[
        found.dtype
    ]
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize("width", [96, 128])
def test_add_and_norm(width, dtype):
    x, delta = torch.randn(2, 5, width, dtype=dtype)
    weight = torch.randn(width, dtype=dtype)
    before = x.clone()
    summed, normed = fused.add_norm(x, delta, weight, 1e-5)
    close(summed, before + delta)  # the interpreter cuts where a card rounds
    close(normed, F.rms_norm(summed, (width,), weight, 1e-5))
    same, normed = fused.add_norm(x, None, weight, 1e-5)
    assert same is x
    assert torch.equal(x, before)
    close(normed, F.rms_norm(x, (width,), weight, 1e-5))


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope.kind)
def test_turns_are_those_of_rope(rope, device):
    rotary = Rotary(rope, 24, 4096, device)
    positions = torch.tensor([0, 1, 17, 999_983], dtype=torch.int32)
    turns = fused.turns_of(positions, rotary.frequencies, rotary.scale)
    for found, expected in zip(turns, rotary(positions, torch.float32), strict=True):
        close(found, expected[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(6, 2, 24), (8, 8, 16), (9, 3, 64)]
)
def test_heads_are_turned_and_stored(heads, kv_heads, head_dim, norms, dtype, device):
    rotary = Rotary(Rope(), head_dim, 4096, device)
    positions = torch.tensor([3, 70, 9, 4000, 5], dtype=torch.int32)
    slots = torch.tensor([3, -1, 17, 27, 0], dtype=torch.int32)
    qkv = torch.randn(5, heads + 2 * kv_heads, head_dim, dtype=dtype)
    weights = torch.randn(2, head_dim, dtype=dtype)
    turned = heads + kv_heads
    expected = qkv.float().clone()
    if norms:
        for place, weight in ((slice(heads), 0), (slice(heads, turned), 1)):
            normed = F.rms_norm(
                expected[:, place], (head_dim,), weights[weight].float(), 1e-6
            )
            expected[:, place] = normed
    cos, sin = rotary(positions, torch.float32)
    expected[:, :turned] = rotate(expected[:, :turned], cos, sin)
    expected = expected.to(dtype)
    pool = torch.randn(2, 7, kv_heads, 4, head_dim, dtype=dtype)
    wanted = pool.clone()
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            wanted[0, slot // 4, :, slot % 4] = expected[row, heads:turned]
            wanted[1, slot // 4, :, slot % 4] = expected[row, turned:]
    turns = fused.turns_of(positions, rotary.frequencies, rotary.scale)
    given = (weights[0], weights[1], 1e-6) if norms else None
    fused.store_heads(qkv, turns, slots, pool, heads, given)
    close(qkv[:, :heads], expected[:, :heads])
    close(pool, wanted)


def test_a_pool_may_lie_in_any_order():
    head_major = torch.zeros(2, 3, 2, 4, 16)
    token_major = torch.zeros(2, 3, 4, 2, 16).transpose(2, 3)
    positions = torch.tensor([4, 2], dtype=torch.int32)
    slots = torch.tensor([9, 2], dtype=torch.int32)
    turns = fused.turns_of(positions, torch.ones(8), 1.0)
    qkv = torch.randn(2, 8, 16)
    for pool in (head_major, token_major):
        fused.store_heads(qkv.clone(), turns, slots, pool, 4, None)
    assert head_major.any()
    assert torch.equal(head_major, token_major)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gated(dtype):
    gate_up = 3 * torch.randn(3, 2 * 1300, dtype=dtype)
    gate, up = gate_up.float().chunk(2, -1)
    close(fused.gated(gate_up), (F.silu(gate) * up).to(dtype))


def test_embedding_of_tokens_that_others_hold_is_zero():
    table = torch.randn(10, 1100).bfloat16()
    found = fused.embed(table, torch.tensor([3, 14, 2, 12], dtype=torch.int32), 3)
    none = torch.zeros_like(table[0])
    expected = torch.stack((table[0], none, none, table[9]))
    assert torch.equal(found, expected)


def test_nothing_is_launched_for_no_rows():
    empty = torch.empty(0, 32)
    none = torch.empty(0, dtype=torch.int32)
    assert fused.gated(empty).shape == (0, 16)
    assert fused.add_norm(empty, empty, torch.ones(32), 1e-5)[1].shape == (0, 32)
    assert fused.embed(torch.ones(4, 8), none, 0).shape == (0, 8)
    assert fused.turns_of(none, torch.ones(4), 1.0).shape == (2, 0, 4)
