"""Attention on a CUDA card: is it right, and how fast is it, of which shapes is it the fastest.

The shape is that of Llama 3 8B: 32 query heads, 8 key heads of 128 numbers, pages of 64 tokens.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from medha_actors.bench.gpu_attention_cases import (
    Model,
    Rows,
    largest_errors,
    make_case,
)
from medha_actors.bench.gpu_attention_sweep import sweep
from medha_actors.bench.gpu_attention_times import LLAMA, case_seconds, timed
from medha_actors.bench.gpu_findings import Findings

PEAK_FLOPS = 989e12  # of an H100 SXM in 16 bits
_TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}


def run(out: Findings) -> None:
    """All of it, the worthiest first."""
    device = torch.device("cuda")
    with torch.inference_mode():
        check_all(out, device)
        measure_prefill(out, device)
        measure_decode(out, device)
        measure_chunks(out, device)
        if out.left_s() > 15:
            sweep(out, device)


def check_all(out: Findings, device: torch.device) -> None:
    """Against float64, with NaN wherever nobody may look."""
    mixed = [
        Rows(1, 700, True),
        Rows(70, 300, True),
        Rows(1, 0, True),
        Rows(5, 2000, False),
    ]
    mixed += [Rows(2, 0, False), Rows(1, 9000, True), Rows(33, 5000, True)]
    cases: list[tuple[str, Model, Sequence[Rows]]] = [("bf16 pages 64", LLAMA, mixed)]
    for size in (16, 256):
        cases.append((f"bf16 pages {size}", LLAMA._replace(page_tokens=size), mixed))
    for dtype in (torch.float16, torch.float32):
        cases.append((f"{dtype} pages 64", LLAMA._replace(dtype=dtype), mixed))
    small = Model(heads=14, kv_heads=2, head_dim=64)
    cases.append(("bf16 head 64, share 7", small, mixed))
    cases.append(("bf16 head 80, no share", Model(8, 8, 80), mixed))
    cases.append(("bf16 head 256", Model(8, 4, 256), mixed))
    cases.append(("bf16 1 row at 1M", LLAMA, [Rows(1, 2**20 - 1, True)]))
    cases.append(("bf16 16 rows at 1M", LLAMA, [Rows(16, 2**20 - 16, True)]))
    for name, model, spans in cases:
        with_name = f"attention equals float64: {name}"
        try:
            case = make_case(spans, model, device, seed=len(name), poisoned=True)
            began = time.perf_counter()
            case.run()
            torch.cuda.synchronize()
            first_s = time.perf_counter() - began
            first = case.out.clone()
            case.run()
            same = bool(torch.equal(first, case.out))
            error, lse_error = largest_errors(case)
        except torch.OutOfMemoryError as problem:
            out.check(with_name, False, str(problem)[:80])
            continue
        good = error < _TOLERANCE[model.dtype] and lse_error < 1e-3 and same
        remark = f"out {error:.1e}, LSE {lse_error:.1e}, compiled in {first_s:.1f} s"
        out.check(with_name, good, remark if same else f"two runs differ; {remark}")
        del case, first
        torch.cuda.empty_cache()


def measure_prefill(out: Findings, device: torch.device) -> None:
    """A prompt alone, all of it in one step."""
    for tokens, wanted in ((2048, None), (8192, 0.40), (32768, 0.45), (131072, 0.45)):
        seconds = case_seconds([Rows(tokens, 0, True)], device)
        name = f"attention, prefill {tokens // 1024}K: share of peak"
        out.add(name, pairs(tokens) / seconds / PEAK_FLOPS, least=wanted)
    for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION"):
        for tokens in (8192, 32768):
            name = f"torch {backend}, prefill {tokens // 1024}K: share of peak"
            try:
                seconds = _sdpa_seconds(tokens, backend, device)
            except RuntimeError as problem:
                out.check(name, False, str(problem)[:80])
                break
            out.add(name, pairs(tokens) / seconds / PEAK_FLOPS)


def measure_decode(out: Findings, device: torch.device) -> None:
    """Single rows: how much of the card's memory bandwidth their keys and values get."""
    table = [(1, 1024, None), (16, 1024, None), (64, 1024, 2000.0), (256, 1024, 2000.0)]
    table += [
        (1, 8192, 1500.0),
        (16, 8192, 2300.0),
        (64, 8192, 2300.0),
        (256, 8192, 2300.0),
    ]
    table += [(1, 2**17, 2300.0), (1, 2**20, 2300.0)]
    for count, context, wanted in table:
        seconds = case_seconds([Rows(1, context - 1, True)] * count, device)
        name = f"attention, decode {count} at {context // 1024}K"
        moved = 2 * count * context * LLAMA.kv_heads * LLAMA.head_dim * 2
        out.add(f"{name}: read", moved / seconds / 1e9, "GB/s", least=wanted)
        out.add(f"{name}: a layer", seconds * 1e6, "us")


def measure_chunks(out: Findings, device: torch.device) -> None:
    """Chunks of a long prompt: time of a token beside that in a chunk of 2048."""
    for context in (8192, 2**17, 2**20):
        whole = None
        for rows in (2048, 512, 256, 128, 64, 32, 16):
            if out.left_s() < 25:
                return
            seconds = case_seconds(
                [Rows(rows, context - rows, True)], device, least_s=0.02
            )
            name = f"attention, chunk {rows} at {context // 1024}K"
            work = pairs(context) - pairs(context - rows)
            if whole is None:
                whole = seconds / rows
                out.add(f"{name}: share of peak", work / seconds / PEAK_FLOPS)
                continue
            wanted = {64: 1.15, 128: 1.05}.get(rows) if context == 2**20 else None
            out.add(
                f"{name}: a token, of one in 2048",
                seconds / rows / whole,
                "x",
                most=wanted,
            )


def pairs(tokens: int) -> float:
    """Operations of a prompt's attention."""
    return 4.0 * LLAMA.heads * LLAMA.head_dim * tokens * (tokens + 1) / 2


def _sdpa_seconds(tokens: int, backend: str, device: torch.device) -> float:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def some(heads: int) -> Tensor:
        return torch.randn(1, heads, tokens, 128, dtype=torch.bfloat16, device=device)

    q = some(LLAMA.heads)
    keys = some(LLAMA.kv_heads)
    values = some(LLAMA.kv_heads)

    def call() -> None:
        torch.nn.functional.scaled_dot_product_attention(
            q, keys, values, is_causal=True, enable_gqa=True
        )

    with sdpa_kernel([getattr(SDPBackend, backend)]):
        call()
        times = [timed(call) for _ in range(7)]
    return sorted(times)[3]
