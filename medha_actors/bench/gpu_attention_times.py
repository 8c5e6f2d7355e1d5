"""How long the attention of one layer takes on a CUDA card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from medha_actors.bench.gpu_attention_cases import Case, Model, Rows, make_case
from medha_actors.model.cuda.attention import paged_attention

LLAMA = Model()
_CACHE = (
    256 * 2**20
)  # bytes read before the same again, so that a card's L2 holds none of it


def case_seconds(
    spans: Sequence[Rows], device: torch.device, least_s: float = 0.05, **options: Any
) -> float:
    """Of one layer, the median of several recorded launches, each over other keys."""
    case = make_case(spans, LLAMA, device, **options)
    size = case.layer.numel() * case.layer.element_size()
    layers = [case.layer]
    layers += [case.layer.clone() for _ in range(min(_CACHE // size, 32))]
    return recorded_seconds(lambda: _each(case, layers), least_s) / len(layers)


def _each(case: Case, layers: Sequence[Tensor]) -> None:
    for layer in layers:
        paged_attention(
            case.q, layer, case.step, case.out, case.lse, case.partials, case.shapes
        )


def recorded_seconds(call: Callable[[], None], least_s: float) -> float:
    """The median time of a CUDA graph of `call`, replayed for `least_s` or so."""
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    once = timed(graph.replay)
    times = [timed(graph.replay) for _ in range(max(3, min(50, int(least_s / once))))]
    del graph
    torch.cuda.empty_cache()
    return sorted(times)[len(times) // 2]


def timed(call: Callable[[], None]) -> float:
    began = torch.cuda.Event(enable_timing=True)
    ended = torch.cuda.Event(enable_timing=True)
    began.record()
    call()
    ended.record()
    ended.synchronize()
    milliseconds: float = began.elapsed_time(ended)
    return milliseconds / 1e3
