"""The decoder for CUDA on a card: whether it is right, what a step of it costs, and how many
launches it takes.

The shape is Llama-3 8B in bfloat16 with weights drawn on the device: no file is needed, 52 GB of
memory are.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.profiler import DeviceType

from medha_actors.bench.gpu_step_cases import (
    BIG,
    PAGE,
    SMALL,
    DrawnWeights,
    Step,
    build,
    decodes,
)
from medha_actors.files.stored import Stored
from medha_actors.model.attention_sdpa import SdpaAttention
from medha_actors.model.cuda.decoder import CudaDecoder
from medha_actors.model.cuda.step import arrays_of
from medha_actors.model.cuda.upload import Uploader
from medha_actors.model.decoder import TorchDecoder
from medha_actors.model.layers import Loader
from medha_actors.model.team import ALONE

Row = dict[str, Any]

_PEAK: Final = 989e12  # operations a second of an H100 in bfloat16
_POOL_TOKENS: Final = 272 * 1024
_STEPS: Final = 20


@torch.inference_mode()
def run(out: Path) -> list[Row]:
    """Check, measure, print the table and write it into the folder `out`."""
    device = torch.device("cuda", torch.cuda.current_device())
    rows: list[Row] = []
    for check in (_correctness, _replays, _loading):
        rows += _attempt(check, device)
    start = time.perf_counter()
    decoder = build(BIG, device, torch.bfloat16, _POOL_TOKENS)
    decoder.fill(_POOL_TOKENS // PAGE)
    torch.cuda.synchronize()
    rows.append(
        {"what": "8B drawn, pool filled", "seconds": time.perf_counter() - start}
    )
    for measure in (_capture, _silence, _decode, _prefill, _launches):
        rows += _attempt(measure, decoder)
        _write(out, rows)
    rows.append({"what": "memory", "GB": torch.cuda.max_memory_allocated() / 1e9})
    _write(out, rows)
    return rows


def _write(out: Path, rows: Sequence[Row]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu_step.json").write_text(json.dumps(rows, indent=1))


def _attempt(work: Callable[[Any], list[Row]], given: Any) -> list[Row]:
    """Rows, printed as they come; a failure is one of them."""
    try:
        rows = work(given)
    except Exception as error:
        rows = [
            {"what": work.__name__, "failed": f"{type(error).__name__}: {error}"[:600]}
        ]
    for row in rows:
        words = [
            f"{key}={_short(value)}" for key, value in row.items() if key != "kernels"
        ]
        print("  ".join(words), flush=True)
    return rows


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_MIXED: Final = (
    Step([(0, 0, 700), (1, 0, 33), (2, 0, 1)], 1024),
    Step([(0, 700, 1000), (1, 33, 34), (2, 1, 2)], 1024),
    Step([(0, 1000, 1001), (1, 34, 35), (2, 2, 3)], 1024),
    Step([(2, 3, 4)], 1024),
)


def _correctness(device: torch.device) -> list[Row]:
    """Chunks and decodes side by side, against float32 on torch's operators."""
    spec = SMALL
    found = []
    for dtype in (torch.bfloat16, torch.float16):
        loader = Loader(DrawnWeights(spec, device), spec, device, torch.float32)
        place = ((0, spec.layers), True, 64, PAGE)
        exact = TorchDecoder(loader, *place, SdpaAttention)
        embedding = loader.embedding()
        rounded = Loader(DrawnWeights(spec, device), spec, device, dtype)
        plain = TorchDecoder(rounded, *place, SdpaAttention)
        mine = build(spec, device, dtype, 64 * PAGE)
        mine.prepare()
        for number, step in enumerate(_MIXED):
            ids = step.ids(spec.vocabulary)
            x = embedding(torch.from_numpy(ids).to(device))
            expected = exact.logits(exact(x, step.plan(), None, ALONE))
            theirs = plain.logits(plain(x.to(dtype), step.plan(), None, ALONE))
            ours = mine.logits(mine(ids, step.plan(), None, ALONE))
            row = {"what": f"step {number} in {dtype}", "error": _error(ours, expected)}
            found.append({**row, "error of torch": _error(theirs, expected)})
    return found


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _replays(device: torch.device) -> list[Row]:
    """Every graph against the same launches one by one, on the same numbers."""
    spec = SMALL
    decoder = build(spec, device, torch.bfloat16, 260 * 128)
    decoder.fill(520)
    decoder.prepare()
    assert decoder.graphs is not None
    different = []
    for extent in decoder.graphs.extents:
        rows = max(1, extent.rows - 1)
        step = decodes(rows, 40)
        arrays = arrays_of(
            step.plan(), step.ids(spec.vocabulary), decoder.attention.plan_work
        )
        eager = decoder.graphs.eager(arrays, None, extent)[:rows].clone()
        replayed = decoder.graphs.run(arrays, None)
        if replayed is None or not torch.equal(eager, replayed):
            different.append(extent.rows)
    return [{"what": "replay equals eager", "graphs": len(decoder.graphs.extents),
             "different": different}]  # fmt: skip


def _loading(device: torch.device) -> list[Row]:
    """A file that the host has in memory, in pieces as large as matrices."""
    pieces = 16
    size = 117 << 20
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        block = os.urandom(1 << 20) * (size >> 20)
        with path.open("wb") as file:
            for _ in range(pieces):
                file.write(block)
        start = time.perf_counter()
        uploader = Uploader(device)
        ready = time.perf_counter()
        for piece in range(pieces):
            last = uploader.bring(Stored(path, piece * size, size))
        torch.cuda.synchronize()
        took = time.perf_counter() - ready
        uploader.close()
    right = bytes(last[-4096:].cpu().numpy()) == block[-4096:]
    speed = uploader.bytes / took / 1e9
    return [
        {"what": "loading", "GB/s": speed, "pinning s": ready - start, "right": right}
    ]


def _capture(decoder: CudaDecoder) -> list[Row]:
    start = time.perf_counter()
    before = torch.cuda.memory_allocated()
    decoder.prepare()
    took = time.perf_counter() - start
    grown = torch.cuda.memory_allocated() - before
    return [{"what": "capture", "seconds": took, "MB": grown / 1e6}]


def _silence(decoder: CudaDecoder) -> list[Row]:
    """Steps that would raise where they wait for the device."""
    found = []
    steps = {"decode": decodes(3, 100), "chunk": Step([(0, 0, 300), (1, 5, 6)], 512)}
    for name, step in steps.items():
        _call(decoder, step)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            decoder.clear([1, 2, 3])
            _call(decoder, step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found.append({"what": f"no sync in a {name}", "ok": True})
    return found


def _call(decoder: CudaDecoder, step: Step) -> Tensor:
    x = decoder(step.ids(BIG.vocabulary), step.plan(), None, ALONE)
    last = x[-1:] if len(x) > len(step.spans) else x
    return decoder.logits(last).argmax(-1)


def _decode(decoder: CudaDecoder) -> list[Row]:
    found = []
    graphs = decoder.graphs
    for batch in (1, 16, 64, 256):
        step = decodes(batch, 1024)
        row: Row = {"what": f"decode of {batch} at 1K"}
        for name, chosen in (("eager", None), ("graph", graphs)):
            decoder.graphs = chosen
            row |= {
                f"{name} {key}": value for key, value in _times(decoder, step).items()
            }
        decoder.graphs = graphs
        found.append(row | _host(decoder, step))
    return found


def _host(decoder: CudaDecoder, step: Step) -> Row:
    """Microseconds of the host in the parts of a step that is replayed, with an idle device."""
    ids = step.ids(BIG.vocabulary)
    plan = step.plan()
    x = decoder(ids, plan, None, ALONE)
    parts: dict[str, Callable[[], Any]] = {
        "plan": step.plan,
        "arrays": lambda: arrays_of(plan, ids, decoder.attention.plan_work),
        "decoder": lambda: decoder(ids, plan, None, ALONE),
        "logits": lambda: decoder.logits(x),
    }
    return {f"{name} us": _median(part) for name, part in parts.items()}


def _median(part: Callable[[], Any]) -> float:
    taken = []
    for _ in range(15):
        torch.cuda.synchronize()
        start = time.perf_counter()
        part()
        taken.append((time.perf_counter() - start) * 1e6)
    return sorted(taken)[7]


def _times(decoder: CudaDecoder, step: Step) -> Row:
    """Milliseconds: of the device for steps in a queue, of the host for giving one, and what a
    step takes when each waits for the token before, beyond the first."""
    for _ in range(3):
        _call(decoder, step)
    torch.cuda.synchronize()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    marks[0].record()
    start = time.perf_counter()
    for _ in range(_STEPS):
        _call(decoder, step)
    host = time.perf_counter() - start
    marks[1].record()
    torch.cuda.synchronize()
    device = marks[0].elapsed_time(marks[1]) / _STEPS
    start = time.perf_counter()
    for _ in range(_STEPS):
        _call(decoder, step).cpu()
    alone = (time.perf_counter() - start) / _STEPS * 1e3
    return {"ms": device, "host ms": host / _STEPS * 1e3, "gap ms": alone - device}


def _prefill(decoder: CudaDecoder) -> list[Row]:
    found = []
    chunk = 2048
    for tokens in (2048, 8192):
        steps = [Step([(0, a, a + chunk)], tokens) for a in range(0, tokens, chunk)]
        found.append(_timed(decoder, steps, f"prefill of {tokens}", _flops(0, tokens)))
    whole = [Step([(0, 0, 8192)], 8192)]
    found.append(_timed(decoder, whole, "prefill of 8192 in one", _flops(0, 8192)))
    for context in (32 << 10, 128 << 10):
        late = [Step([(0, context, context + chunk)], context + chunk)]
        flops = _flops(context, context + chunk)
        found.append(_timed(decoder, late, f"2K behind {context >> 10}K", flops))
    for rows, context in ((64, 128 << 10), (64, 8 << 10), (256, 8 << 10)):
        small = [Step([(0, context, context + rows)], context + rows)]
        flops = _flops(context, context + rows)
        found.append(_timed(decoder, small, f"{rows} behind {context >> 10}K", flops))
    return found


def _flops(start: int, stop: int) -> float:
    """Operations of a chunk: matrices, and pairs of attention."""
    pairs = (stop * (stop + 1) - start * (start + 1)) / 2
    matrices = 2.0 * BIG.layers * BIG.active_layer_parameters * (stop - start)
    return matrices + BIG.layers * BIG.pair_flops * pairs


def _timed(decoder: CudaDecoder, steps: Sequence[Step], what: str, flops: float) -> Row:
    tokens = sum([step.spans[0][2] - step.spans[0][1] for step in steps])
    given = [(step, step.ids(BIG.vocabulary), step.plan()) for step in steps]
    times = []
    for _ in range(4):
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        marks[0].record()
        for _, ids, plan in given:
            decoder.logits(decoder(ids, plan, None, ALONE)[-1:])
        marks[1].record()
        torch.cuda.synchronize()
        times.append(marks[0].elapsed_time(marks[1]))
    best = sorted(times[1:])[1]
    share = flops / (best / 1e3) / _PEAK
    return {"what": what, "ms": best, "tokens/s": tokens / best * 1e3, "MFU": share}


def _launches(decoder: CudaDecoder) -> list[Row]:
    """Launches a layer, and the kernels that take most time."""
    found = []
    graphs = decoder.graphs
    decoder.graphs = None
    steps = {"decode of 1": decodes(1, 1024), "decode of 64": decodes(64, 1024),
             "chunk of 2048": Step([(0, 0, 2048)], 2048)}  # fmt: skip
    for name, step in steps.items():
        activities = [
            torch.profiler.ProfilerActivity.CPU,
            torch.profiler.ProfilerActivity.CUDA,
        ]
        with torch.profiler.profile(activities=activities) as profile:
            _call(decoder, step)
            torch.cuda.synchronize()
        counts: Counter[str] = Counter()
        times: Counter[str] = Counter()
        for event in profile.events():
            if event.device_type == DeviceType.CUDA:
                counts[event.name] += 1
                times[event.name] += event.device_time_total
        kernels = [[key[:70], counts[key], used] for key, used in times.most_common(14)]
        each = sum(counts.values()) / BIG.layers
        found.append({"what": f"launches, {name}", "a layer": each, "kernels": kernels,
                      "us": float(sum(times.values()))})  # fmt: skip
        for key, count, used in kernels:
            print(f"    {used:9.0f} us {count:4d} x {key}", flush=True)
    decoder.graphs = graphs
    return found
