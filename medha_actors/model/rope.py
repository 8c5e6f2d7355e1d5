"""Rotary position embeddings and their scalings: default, linear, dynamic, llama3, yarn, as in
transformers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from medha_actors.model_spec import Rope


class Rotary:
    """cos and sin of positions * frequencies, computed once per step and shared by all layers."""

    def __init__(
        self, rope: Rope, head_dim: int, max_positions: int, device: torch.device
    ) -> None:
        frequencies, scale = frequencies_of(rope, head_dim, max_positions)
        self.frequencies = frequencies.to(device)
        self.scale = scale

    def __call__(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Positions [rows] -> cos, sin, each [rows, 1, head_dim / 2]."""
        angles = (positions.float()[:, None] * self.frequencies)[:, None, :]
        cos = angles.cos()
        sin = angles.sin()
        if self.scale != 1.0:
            cos = cos * self.scale
            sin = sin * self.scale
        return cos.to(dtype), sin.to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [rows, heads, head_dim]; the pairs are (i, i + head_dim / 2) as in Hugging Face
    checkpoints."""
    half = x.shape[-1] // 2
    left = x[..., :half]
    right = x[..., half:]
    out = torch.empty_like(x)
    torch.mul(left, cos, out=out[..., :half]).addcmul_(right, sin, value=-1)
    torch.mul(right, cos, out=out[..., half:]).addcmul_(left, sin)
    return out


def frequencies_of(
    rope: Rope, head_dim: int, max_positions: int
) -> tuple[Tensor, float]:
    """The inverse frequencies [head_dim / 2] and the factor on cos and sin.

    `dynamic` stretches once, for the longest sequence that is served: cached keys cannot be rotated
    again when a sequence grows.
    """
    theta = rope.theta
    scale = 1.0
    if rope.kind == "dynamic":
        length = max(max_positions, rope.original_max_positions)
        stretch = rope.factor * length / rope.original_max_positions - (rope.factor - 1)
        theta *= stretch ** (head_dim / (head_dim - 2))
    plain = 1.0 / (
        theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    )
    if rope.divisors:
        plain = plain / torch.tensor(rope.divisors, dtype=torch.float32)
    if rope.kind == "linear":
        plain = plain / rope.factor
    elif rope.kind == "llama3":
        plain = _llama3(plain, rope)
    elif rope.kind == "yarn":
        plain, scale = _yarn(plain, rope, head_dim)
    return plain, scale


def _llama3(plain: Tensor, rope: Rope) -> Tensor:
    """Long waves are stretched by `factor`, short ones kept, those between interpolated."""
    wavelength = 2 * math.pi / plain
    turns = rope.original_max_positions / wavelength
    smooth = (turns - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    between = (1 - smooth) * plain / rope.factor + smooth * plain
    stretched = torch.where(turns < rope.low_freq_factor, plain / rope.factor, between)
    return torch.where(turns > rope.high_freq_factor, plain, stretched)


def _yarn(plain: Tensor, rope: Rope, head_dim: int) -> tuple[Tensor, float]:
    """YaRN (arXiv 2309.00071): interpolate slow dimensions, keep fast ones, and scale the
    attention."""

    def dimension(turns: float) -> float:
        ratio = rope.original_max_positions / (turns * 2 * math.pi)
        return head_dim * math.log(ratio) / (2 * math.log(rope.theta))

    low = dimension(rope.beta_fast)
    high = dimension(rope.beta_slow)
    if rope.truncate:
        low = math.floor(low)
        high = math.ceil(high)
    low = max(low, 0)
    high = min(high, head_dim - 1)
    width = high - low or 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / width).clamp(
        0, 1
    )
    scaled = plain / rope.factor * ramp + plain * (1 - ramp)
    if rope.attention_factor is not None:
        return scaled, rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return scaled, _mscale(rope.factor, rope.mscale) / _mscale(
            rope.factor, rope.mscale_all_dim
        )
    return scaled, _mscale(rope.factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
