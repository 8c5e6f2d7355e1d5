"""Exact merging of partial attention with online softmax (paper, 3.3): each partial carries its
log-sum-exp."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from medha_actors.model.step_plan import StepPlan


class Exchange(ABC):
    """How a stage's KV groups merge their partial attention, whatever computed it."""

    @abstractmethod
    def merge(self, groups: tuple[int, ...], out: Tensor, lse: Tensor) -> None:
        """Replace this group's `out` [rows, heads, head_dim] (lse float32 [rows, heads], -inf:
        nothing seen) by the attention over the pieces of all `groups`, merged in float32."""


def merge_shared(
    plan: StepPlan, exchange: Exchange | None, out: Tensor, lse: Tensor
) -> None:
    """Merge the rows of a step that several groups share; `out` and `lse` are all its rows'."""
    for run in plan.shared:
        assert exchange is not None, "a span with several groups needs an exchange"
        exchange.merge(run.groups, out[run.rows], lse[run.rows])


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
    for partial, share in zip(outs[1:], shares[1:], strict=True):
        out.addcmul_(partial.float(), share[..., None])
    return out, peak + total.log()


def merge_into(out: Tensor, outs: Sequence[Tensor], lses: Sequence[Tensor]) -> None:
    """`merge` into `out`, which may be one of `outs`: in one launch where it can be."""
    if (
        out.is_cuda
        and len(outs) == 2
        and all(x.is_contiguous() for x in (out, *outs, *lses))
    ):
        from medha_actors.model.cuda.pieces import merge_two

        merge_two((outs[0], outs[1]), (lses[0], lses[1]), out)
    else:
        out.copy_(merge(outs, lses)[0])


def pack(out: Tensor, lse: Tensor) -> Tensor:
    """One tensor to send to other groups: float32 [rows, heads, head_dim + 1], the LSE last."""
    return torch.cat((out.float(), lse[..., None]), -1)


def merge_packed(partials: Sequence[Tensor]) -> Tensor:
    """Merge packed partials; the order of summation is the order given. Returns float32 [rows,
    heads, head_dim]."""
    outs = [partial[..., :-1] for partial in partials]
    lses = [partial[..., -1] for partial in partials]
    return merge(outs, lses)[0]
