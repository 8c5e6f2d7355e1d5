"""Draws tokens from logits: temperature, min_p, top_k, top_p, and inverse-CDF sampling with a counter-based uniform.

A draw depends on (seed, index) and on that row's logits alone, never on what is batched beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medha_actors.messages import SamplingParams

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15
_CANDIDATES = 1024  # tried first for top_p and min_p; a flat distribution falls back to a full sort


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1), 48 bits, from a hash of (seed, index) (two rounds of SplitMix64)."""
    return (_mix(_mix(seed & _MASK) + (index + 1) * _GOLDEN) >> 16) * 2.0**-48


def _mix(x: int) -> int:
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def draw(logits: Tensor, params: Sequence[SamplingParams], indices: Sequence[int]) -> Tensor:
    """Token ids [rows] for float32 logits [rows, vocabulary], all with a temperature above 0.

    Filters apply in vLLM's order: temperature, min_p, top_k, top_p.
    """
    temperatures = torch.tensor([one.temperature for one in params], dtype=torch.float32, device=logits.device)
    scaled = logits / temperatures[:, None]
    shots = [uniform(one.seed, index) for one, index in zip(params, indices, strict=True)]
    chosen = torch.empty(len(params), dtype=torch.int64, device=logits.device)
    plain = [row for row, one in enumerate(params) if not _filters(one)]
    if plain:
        rows = torch.tensor(plain, device=logits.device)
        wanted = torch.tensor([shots[row] for row in plain], dtype=torch.float64, device=logits.device)
        chosen[rows] = _invert(scaled[rows].softmax(-1), wanted)
    for row, one in enumerate(params):
        if _filters(one):
            values, token_ids = keep(scaled[row], one)
            wanted = torch.tensor([shots[row]], dtype=torch.float64, device=logits.device)
            chosen[row] = token_ids[_invert(values.softmax(-1)[None], wanted)[0]]
    return chosen


def _filters(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0


def _invert(probabilities: Tensor, shots: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds the shot, for each row."""
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    targets = shots[:, None] * cumulative[:, -1:]
    found = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    return found.clamp_max_(probabilities.shape[-1] - 1)


def keep(scaled: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Logits and ids of the tokens of one row that pass the filters, most likely first."""
    vocabulary = len(scaled)
    limit = min(params.top_k or vocabulary, vocabulary)
    found = _keep_among(scaled, params, min(limit, _CANDIDATES), limit) or _keep_among(scaled, params, limit, limit)
    assert found is not None  # the second call looks at every token that top_k allows
    return found


def _keep_among(scaled: Tensor, params: SamplingParams, count: int, limit: int) -> tuple[Tensor, Tensor] | None:
    """The same among the `count` most likely tokens; None if they may not be all that pass."""
    values, token_ids = scaled.topk(count)
    kept = count
    if params.min_p > 0.0:
        kept = int((values >= values[0] + math.log(params.min_p)).sum())
        limit = kept if kept < count else limit
    if params.top_p < 1.0:
        # What top_k and min_p leave is 1; where they do not end inside the candidates, the tail counts too.
        whole = values[:kept].logsumexp(0) if kept == limit else _tail_sum(scaled, params)
        cumulative = (values[:kept] - whole).exp().cumsum(0, dtype=torch.float64)
        before = int((cumulative < params.top_p).sum())
        if before < kept:
            return values[: before + 1], token_ids[: before + 1]
    return (values[:kept], token_ids[:kept]) if kept == limit else None


def _tail_sum(scaled: Tensor, params: SamplingParams) -> Tensor:
    if params.min_p > 0.0:
        scaled = scaled[scaled >= scaled.max() + math.log(params.min_p)]
    if 0 < params.top_k < len(scaled):
        scaled = scaled.topk(params.top_k)[0]
    return scaled.logsumexp(0)
