"""Merging partial attention: any cut into pieces, in any order, gives the attention over the
whole."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medha_actors.model.merge import merge, merge_packed, pack

HEADS = 2
DIM = 8


def attend(q, k, v):
    """Plain attention in float64: out [rows, heads, dim], LSE [rows, heads]; nothing to see gives
    zeros and -inf."""
    scores = torch.einsum("rhd,nhd->rhn", q.double(), k.double()) / DIM**0.5
    if not len(k):
        return torch.zeros_like(q), torch.full(q.shape[:2], -torch.inf)
    return torch.einsum(
        "rhn,nhd->rhd", scores.softmax(-1), v.double()
    ).float(), scores.logsumexp(-1).float()


@st.composite
def pieces(draw):
    lengths = draw(st.lists(st.integers(0, 6), min_size=1, max_size=5))
    seed = draw(st.integers(0, 10**6))
    scale = draw(st.sampled_from([0.1, 1.0, 30.0]))
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(3, HEADS, DIM, generator=generator) * scale
    k, v = torch.randn(2, sum(lengths), HEADS, DIM, generator=generator)
    return q, k, v, lengths, draw(st.permutations(range(len(lengths))))


@settings(max_examples=150)
@given(pieces())
def test_pieces_merge_to_the_whole_in_any_order(case):
    q, k, v, lengths, order = case
    parts = [
        attend(q, *kv) for kv in zip(k.split(lengths), v.split(lengths), strict=True)
    ]
    whole, whole_lse = attend(q, k, v)
    for chosen in (range(len(parts)), order):
        out, lse = merge(*zip(*[parts[i] for i in chosen], strict=True))
        torch.testing.assert_close(out, whole, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(lse, whole_lse, atol=1e-5, rtol=1e-5)


@settings(max_examples=100)
@given(pieces())
def test_merging_is_associative(case):
    q, k, v, lengths, _ = case
    parts = [
        attend(q, *kv) for kv in zip(k.split(lengths), v.split(lengths), strict=True)
    ]
    step = parts[0]
    for part in parts[1:]:
        step = merge(*zip(step, part, strict=True))
    torch.testing.assert_close(
        step[0], merge(*zip(*parts, strict=True))[0], atol=2e-6, rtol=1e-5
    )


def test_rows_that_see_nothing_give_zeros_and_no_nan():
    nothing = torch.zeros(2, HEADS, DIM), torch.full((2, HEADS), -torch.inf)
    out, lse = merge(*zip(nothing, nothing, strict=True))
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


def test_merging_is_done_in_float32_and_packs_the_lse_last():
    q, k, v = torch.randn(
        3, 40, HEADS, DIM, generator=torch.Generator().manual_seed(1)
    ).unbind()
    parts = [attend(q, k[:11], v[:11]), attend(q, k[11:], v[11:])]
    packed = [pack(out.bfloat16(), lse) for out, lse in parts]
    assert packed[0].dtype == torch.float32
    assert packed[0].shape == (40, HEADS, DIM + 1)
    torch.testing.assert_close(
        merge_packed(packed), attend(q, k, v)[0], atol=1e-2, rtol=1e-2
    )
