"""The kernel that merges the partials of two KV groups against torch's operators."""

import pytest
import torch

from medha_actors.model.cuda.pieces import merge_two
from medha_actors.model.merge import merge


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str
)
@pytest.mark.parametrize(
    ("rows", "heads", "head_dim"), [(1, 9, 64), (37, 8, 128), (3, 5, 24)]
)
def test_two_pieces_merge(rows, heads, head_dim, dtype, device):
    torch.manual_seed(rows)
    outs = [
        torch.randn(rows, heads, head_dim, device=device).to(dtype) for _ in range(2)
    ]
    lses = [torch.randn(rows, heads, device=device) * 10 for _ in range(2)]
    lses[0][0, 0] = -torch.inf  # one has seen nothing
    lses[0][-1, 1] = lses[1][-1, 1] = -torch.inf  # neither has
    expected = merge(outs, lses)[0]
    found = [out.clone() for out in outs]
    merge_two((found[0], outs[1]), (lses[0], lses[1]), found[0])
    merge_two((outs[0], found[1]), (lses[0], lses[1]), found[1])
    assert torch.equal(*found)
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 1e-3}[dtype]
    torch.testing.assert_close(
        found[0].float(), expected, atol=tolerance, rtol=tolerance
    )
    assert not found[0][-1, 1].any()


def test_nothing_to_merge(device):
    none = torch.empty(0, 4, 16, device=device)
    merge_two((none, none), (none[..., 0], none[..., 0]), none)
