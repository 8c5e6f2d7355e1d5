"""What this machine can do at most: matrix products and memory reads, one pinned process per core
at the same time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import torch

_SIZE = 2048
_READ_BYTES = 256 * 2**20


def measure(processes: int) -> tuple[float, float]:
    """(FLOP/s in bfloat16 matrix products, bytes/s read) of `processes` cores together."""
    cores = sorted(os.sched_getaffinity(0))[:processes]
    with get_context("spawn").Pool(len(cores)) as pool:
        speeds = pool.map(_one_core, cores, chunksize=1)
    return sum(flops for flops, _ in speeds), sum(read for _, read in speeds)


def _one_core(core: int) -> tuple[float, float]:
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    a = torch.randn(_SIZE, _SIZE).bfloat16()
    b = torch.randn(_SIZE, _SIZE).bfloat16()
    words = torch.ones(_READ_BYTES // 4)
    flops = 2 * _SIZE**3 / _fastest(lambda: a @ b)
    return flops, _READ_BYTES / _fastest(words.sum)


def _fastest(work: Callable[[], Any], tries: int = 8) -> float:
    seconds = []
    for _ in range(tries):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
