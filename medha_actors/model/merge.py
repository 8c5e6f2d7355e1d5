"""Exact merging of partial attention with online softmax (paper, 3.3): each partial carries its
log-sum-exp."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merge(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over the union of disjoint pieces, in float32.

    outs: [..., head_dim] each, normalised over its own piece; lses: float32 [...], -inf for an
    empty piece (whose out must be finite). Returns out [..., head_dim] and LSE [...]; rows that saw
    nothing at all get zeros and -inf.
    """
    stacked = torch.stack(tuple(lses))
    peak = stacked.amax(0)
    peak = torch.where(peak == -torch.inf, 0.0, peak)  # exp(-inf - -inf) would be NaN
    shares = (stacked - peak).exp_()
    total = shares.sum(0)
    shares /= total.clamp_min(torch.finfo(torch.float32).tiny)
    out = outs[0].float() * shares[0, ..., None]
    for piece, share in zip(outs[1:], shares[1:], strict=True):
        out.addcmul_(piece.float(), share[..., None])
    return out, peak + total.log()


def pack(out: Tensor, lse: Tensor) -> Tensor:
    """One tensor for the exchange between groups: float32 [rows, heads, head_dim + 1], the LSE
    last."""
    return torch.cat((out.float(), lse[..., None]), -1)


def merge_packed(partials: Sequence[Tensor]) -> Tensor:
    """Merge packed partials; the order of summation is the order given. Returns float32 [rows,
    heads, head_dim]."""
    return merge(
        [partial[..., :-1] for partial in partials], [partial[..., -1] for partial in partials]
    )[0]
