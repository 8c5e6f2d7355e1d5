"""Which shape of the attention kernels is the fastest on this card."""

from __future__ import annotations

import torch

from medha_actors.bench.gpu_attention_cases import Rows
from medha_actors.bench.gpu_attention_times import LLAMA, case_seconds
from medha_actors.bench.gpu_findings import Findings
from medha_actors.model.cuda.attention import Shape, Shapes, shapes_for

WIDE = (
    Shape(128, 64, 8, 3),
    Shape(128, 64, 8, 4),
    Shape(128, 64, 8, 5),
    Shape(64, 64, 4, 3),
    Shape(128, 128, 8, 2),
)
NARROW = (
    Shape(16, 64, 4, 3),
    Shape(16, 64, 4, 4),
    Shape(16, 32, 4, 4),
    Shape(16, 128, 4, 2),
    Shape(16, 64, 2, 3),
)
Steps = tuple[tuple[str, tuple[Rows, ...]], ...]

_PROMPTS: Steps = (
    ("prefill 16K", (Rows(16384, 0, True),)),
    ("chunk 64 at 128K", (Rows(64, 2**17, True),)),
)
_DECODES: Steps = (
    ("decode 64 at 1K", (Rows(1, 1023, True),) * 64),
    ("decode 16 at 8K", (Rows(1, 8191, True),) * 16),
    ("decode 1 at 128K", (Rows(1, 2**17, True),)),
)


def sweep(out: Findings, device: torch.device) -> None:
    """Microseconds of every shape on a few steps, while there is time."""
    usual = shapes_for(LLAMA.dtype, LLAMA.head_dim, 4, roomy=True)
    tried: list[tuple[Shapes, Shape, Steps]] = []
    for wide, narrow in zip(WIDE, NARROW, strict=True):
        tried.append((usual._replace(wide=wide), wide, _PROMPTS))
        tried.append((usual._replace(narrow=narrow), narrow, _DECODES))
    for shapes, shape, steps in tried:
        for name, spans in steps:
            if out.left_s() < 8:
                return
            with_shape = (
                f"attention, {name}, rows x keys x warps x stages {_text(shape)}"
            )
            try:
                seconds = case_seconds(spans, device, least_s=0.03, shapes=shapes)
            except Exception as problem:
                out.check(
                    with_shape, False, f"{type(problem).__name__}: {problem}"[:80]
                )
                break
            out.add(with_shape, seconds * 1e6, "us")


def _text(shape: Shape) -> str:
    return " x ".join([str(number) for number in shape])
