"""Draws tokens from logits: temperature, min_p, top_k, top_p, and inverse-CDF sampling with a counter-based uniform.

A draw depends on (seed, index) and on that row's logits alone, never on what is batched beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medha_actors.messages import SamplingParams

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_CANDIDATES = (256, 4096)  # how many of the most likely tokens top_p looks at before it sorts them all
_BLOCK = 256  # tokens summed together before the cumulative sum


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1), 48 bits, from a hash of (seed, index) (two rounds of SplitMix64)."""
    return (_mix(_mix(seed & _MASK) + (index + 1) * _GOLDEN) >> 16) * 2.0**-48


def _mix(x: int) -> int:
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def most_likely(logits: Tensor) -> Tensor:
    """argmax of each row; numpy's is 15 times faster than torch's on a CPU."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.numpy().argmax(-1))
    return logits.argmax(-1)


def draw(logits: Tensor, params: Sequence[SamplingParams], indices: Sequence[int]) -> Tensor:
    """Token ids [rows] for float32 logits [rows, vocabulary], all with a temperature above 0.

    Filters apply in vLLM's order: temperature, min_p, top_k, top_p.
    """
    temperatures = torch.tensor([one.temperature for one in params], dtype=torch.float32, device=logits.device)
    scaled = logits / temperatures[:, None]
    for row, one in zip(scaled, params, strict=True):
        if one.top_k > 0 or one.top_p < 1.0 or one.min_p > 0.0:
            row.masked_fill_(row < threshold(row, one), -torch.inf)
    shots = [uniform(one.seed, index) for one, index in zip(params, indices, strict=True)]
    return _invert(scaled.softmax(-1), torch.tensor(shots, dtype=torch.float64, device=logits.device))


def threshold(row: Tensor, params: SamplingParams) -> float:
    """The smallest logit of one row that min_p, top_k and top_p, in this order, let pass."""
    peak, vocabulary = float(row.max()), len(row)
    floor = peak + math.log(params.min_p) if params.min_p > 0.0 else -math.inf
    limited = 0 < params.top_k < vocabulary
    if limited:
        best = _largest(row, params.top_k)
        floor = max(floor, float(best[-1]))
    if params.top_p >= 1.0:
        return floor
    passing = best if limited else row
    total = float((passing[passing >= floor] - peak).exp_().sum(dtype=torch.float64))
    for count in (params.top_k,) if limited else (*_CANDIDATES, vocabulary):
        if not limited:
            best = _largest(row, min(count, vocabulary))
        reached = (best - peak).exp_().cumsum(0, dtype=torch.float64)
        enough = int((reached < params.top_p * total).sum())
        if enough < len(best):
            return max(floor, float(best[enough]))
    return floor  # rounding kept the sum below top_p of the total: all pass


def _largest(row: Tensor, count: int) -> Tensor:
    """The `count` largest values, largest first; numpy sorts several times faster than torch on a CPU."""
    if row.device.type != "cpu":
        return row.topk(count)[0]
    values = row.numpy()
    some = np.partition(values, -count)[-count:] if count < len(values) else values
    return torch.from_numpy(np.sort(some)[::-1].copy())


def _invert(probabilities: Tensor, shots: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds the shot, for each row.

    Whole blocks are summed first and only the block that is hit token by token: ten times faster than one long
    cumulative sum in float64, in which every row's result would be the same.
    """
    rows = torch.arange(len(probabilities), device=probabilities.device)
    blocks = F.pad(probabilities, (0, -probabilities.shape[1] % _BLOCK)).view(len(rows), -1, _BLOCK)
    ends = blocks.sum(-1).double().cumsum(-1)
    targets = shots[:, None] * ends[:, -1:]
    hit = torch.searchsorted(ends, targets, right=True)[:, 0].clamp_max_(ends.shape[1] - 1)
    inside = blocks[rows, hit].double()
    starts = torch.where(hit > 0, ends[rows, hit - 1], 0.0)
    reached = inside.cumsum(-1) + starts[:, None]
    token = torch.searchsorted(reached, targets, right=True)[:, 0]
    last = _BLOCK - 1 - (inside > 0).flip(-1).int().argmax(-1)  # rounding must not lead to a token that is masked
    return (hit * _BLOCK + torch.minimum(token, last)).clamp_max_(probabilities.shape[1] - 1)
