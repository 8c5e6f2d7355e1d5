"""Merging the partial attention of two KV groups, as one Triton kernel: torch's operators take some
twenty launches for it."""

# ruff: noqa: ANN001, ANN201  (kernels take pointers, integers and constants)
from __future__ import annotations

from typing import Final

import triton
import triton.language as tl
from torch import Tensor

_AT_ONCE: Final = 16  # heads that one program does


@triton.jit(do_not_specialize=["count"])
def merge_two_kernel(
    first, first_lse, second, second_lse, out, count,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """A program for AT_ONCE of `count` heads (of all rows): their partials [count, WIDTH] and LSEs
    [count]. `out` may be one of the partials."""
    heads = tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE)
    columns = tl.arange(0, BLOCK)
    known = heads < count
    left = tl.load(first_lse + heads, mask=known, other=0.0)
    right = tl.load(second_lse + heads, mask=known, other=0.0)
    peak = tl.maximum(left, right)
    peak = tl.where(peak == float("-inf"), 0.0, peak)  # exp(-inf - -inf) would be NaN
    left = tl.exp(left - peak)
    right = tl.exp(right - peak)
    total = tl.maximum(left + right, 1.1754943508222875e-38)
    place = heads.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    inside = known[:, None] & (columns < WIDTH)[None, :]
    mine = tl.load(first + place, mask=inside, other=0.0).to(tl.float32)
    theirs = tl.load(second + place, mask=inside, other=0.0).to(tl.float32)
    result = mine * (left / total)[:, None] + theirs * (right / total)[:, None]
    tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)


def merge_two(
    outs: tuple[Tensor, Tensor], lses: tuple[Tensor, Tensor], out: Tensor
) -> None:
    """`merge` of two, into `out`, which may be one of them. All contiguous: outs [..., head_dim] of
    one type, LSEs float32 [...]."""
    count = lses[0].numel()
    width = outs[0].shape[-1]
    if count:
        block = triton.next_power_of_2(width)
        grid = (triton.cdiv(count, _AT_ONCE),)
        merge_two_kernel[grid](
            outs[0],
            lses[0],
            outs[1],
            lses[1],
            out,
            count,
            width,
            block,
            _AT_ONCE,
            num_warps=4,
        )
