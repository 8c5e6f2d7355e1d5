"""What the card itself can do, measured: what all other figures are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch

from medha_actors.bench.gpu_findings import Findings

_REPEATS = 20
_SIDE = 8192
_BYTES = 4 << 30


def seconds_of(work: Callable[[], object], repeats: int = _REPEATS) -> float:
    """Median of the GPU's own seconds for `work`, after three rounds of warming up."""
    for _ in range(3):
        work()
    pairs = []
    for _ in range(repeats):
        began = torch.cuda.Event(enable_timing=True)
        ended = torch.cuda.Event(enable_timing=True)
        began.record()
        work()
        ended.record()
        pairs.append((began, ended))
    torch.cuda.synchronize()
    milliseconds: list[float] = [began.elapsed_time(ended) for began, ended in pairs]
    return median(milliseconds) / 1e3


def run(out: Findings) -> None:
    """Bandwidths, matrix products, launches."""
    _matrices(out)
    _memory(out)
    _launches(out)
    _host(out)


def _matrices(out: Findings) -> None:
    a, b = (
        torch.randn(_SIDE, _SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2)
    )
    product = torch.empty_like(a)
    seconds = seconds_of(lambda: torch.mm(a, b, out=product))
    out.add(
        f"bf16 matrix product, {_SIDE} cubed", 2e-12 * _SIDE**3 / seconds, "TFLOP/s"
    )


def _memory(out: Findings) -> None:
    source = torch.randint(255, (_BYTES // 4,), device="cuda", dtype=torch.int32)
    target = torch.empty_like(source)
    seconds = seconds_of(lambda: target.copy_(source))
    out.add("device memory, read and written", 2e-12 * _BYTES / seconds, "TB/s")


def _launches(out: Findings) -> None:
    small = torch.zeros(1, device="cuda")
    small.add_(1)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(2000):
        small.add_(1)
    launched_s = time.perf_counter() - began
    torch.cuda.synchronize()
    out.add("host time of a launch through torch", 1e6 * launched_s / 2000, "us")
    waits = []
    for _ in range(200):
        small.add_(1)
        began = time.perf_counter()
        torch.cuda.synchronize()
        waits.append(time.perf_counter() - began)
    out.add("wait for a small kernel", 1e6 * median(waits), "us")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(1000):
            small.add_(1)
    out.add("kernel within a graph", 1e6 * seconds_of(graph.replay) / 1000, "us")


def _host(out: Findings) -> None:
    """Copies of 16 MiB, about the hidden states of 2,048 rows of an 8B model."""
    size = 16 << 20
    device = torch.empty(size, device="cuda", dtype=torch.uint8)
    for kind in ("pinned", "pageable"):
        host = torch.zeros(size, dtype=torch.uint8, pin_memory=kind == "pinned")
        for where, target, source in (("to", device, host), ("from", host, device)):
            seconds = _wall_s(target, source)
            out.add(f"copy {where} the device, {kind}", 1e-9 * size / seconds, "GB/s")


def _wall_s(target: torch.Tensor, source: torch.Tensor) -> float:
    """Wall-clock seconds of a copy, the wait included."""
    times = []
    for _ in range(_REPEATS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return median(times)
