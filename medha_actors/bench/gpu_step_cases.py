"""What the decoder for CUDA is measured on: the shape of Llama-3 8B and a small one, with weights
that are drawn on the device, and steps of sequences that lie one behind the other in the pool."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from medha_actors.messages import Span
from medha_actors.model.cuda.attention_calls import TritonCalls
from medha_actors.model.cuda.decoder import CudaDecoder
from medha_actors.model.cuda.graphs import CudaCapture
from medha_actors.model.cut import WHOLE, Cut
from medha_actors.model.layers import Loader
from medha_actors.model.shapes import tensor_shapes
from medha_actors.model.step_plan import StepPlan, plan_step
from medha_actors.model_spec import ModelSpec, Rope

PAGE: Final = 64
BIG: Final = ModelSpec(
    architecture="llama", layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128,
    intermediate=14336, vocabulary=128256, eps=1e-5, rope=Rope(theta=500_000.0),
    max_positions=1 << 20, tied_head=False,
)  # fmt: skip
SMALL: Final = ModelSpec(
    architecture="llama", layers=3, hidden=1024, heads=8, kv_heads=2, head_dim=128,
    intermediate=2048, vocabulary=1000, eps=1e-5, rope=Rope(), max_positions=1 << 16,
    tied_head=True,
)  # fmt: skip


class DrawnWeights:
    """See model.weights.Weights: drawn where they stay."""

    def __init__(self, spec: ModelSpec, device: torch.device) -> None:
        self.shapes = tensor_shapes(spec)
        self.device = device

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def tensor(self, name: str, dtype: torch.dtype, cut: Cut = WHOLE) -> Tensor:
        shape = self.shapes[name]
        if len(shape) == 1:
            return torch.ones(shape, dtype=dtype, device=self.device)
        generator = torch.Generator(self.device).manual_seed(zlib.crc32(name.encode()))
        drawn = torch.randn(
            shape, dtype=torch.bfloat16, device=self.device, generator=generator
        )
        return drawn.mul_(shape[1] ** -0.5).to(dtype)

    def blocks(self, name: str, cut: Cut = WHOLE) -> tuple[Tensor, int] | None:
        return None


class Step:
    """Spans of sequences: (sequence, first position, stop)."""

    def __init__(self, spans: Sequence[tuple[int, int, int]], longest: int) -> None:
        """`longest`: tokens of pages that each sequence has, behind those of the one before."""
        self.spans = spans
        pages = -(-longest // PAGE)
        self._tables = {}
        self._made = []
        for number, start, stop in spans:
            name = str(number)
            self._tables[name] = array("i", range(number * pages, (number + 1) * pages))
            self._made.append(Span(name, start, stop, b"", 0, start, ()))
        found = [np.arange(a, b) * 7919 + 104729 * n for n, a, b in spans]
        self._ids = np.concatenate(found)

    def plan(self) -> StepPlan:
        """What the host plans in every step."""
        return plan_step(self._made, self._tables, PAGE)

    def ids(self, vocabulary: int) -> np.ndarray:
        """Token ids: of a position always the same one."""
        return (self._ids % vocabulary).astype(np.int32)


def decodes(batch: int, context: int) -> Step:
    """One row of each of `batch` sequences with so many tokens cached."""
    spans = [(number, context, context + 1) for number in range(batch)]
    return Step(spans, context + PAGE)


def build(
    spec: ModelSpec, device: torch.device, dtype: torch.dtype, tokens: int
) -> CudaDecoder:
    """A whole model with a pool of so many tokens."""
    loader = Loader(DrawnWeights(spec, device), spec, device, dtype)
    calls = TritonCalls(spec, dtype, device)
    place = ((0, spec.layers), True, tokens // PAGE, PAGE)
    return CudaDecoder(loader, *place, loader.embedding(), calls, CudaCapture(device))
