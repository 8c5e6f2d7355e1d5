"""Two stage actors on one real GPU: started, calibrated, used, killed and poisoned.

    python tests/gpu/ray_one_gpu.py [seconds]

From the repository's root; about a minute. `run` is a part of `python -m medha_actors.bench gpu`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import ray
import torch

from medha_actors.actors import calibration, probing
from medha_actors.actors.cluster import Cluster
from medha_actors.actors.controller import Controller
from medha_actors.actors.engine import RayEngine
from medha_actors.actors.local import generate, greedy, prompt_of

ARGS: dict[str, Any] = {
    "model_loading_config": {
        "model_source": "random",
        "dtype": "bfloat16",
        "max_model_len_tokens": 131_072,
        "random": {
            "layers": 8,
            "hidden": 2048,
            "heads": 32,
            "kv_heads": 8,
            "head_dim": 64,
            "intermediate": 8192,
            "vocabulary": 32_768,
        },
    },
    "parallel": {"spp": 2},
    "actors": {"device": "cuda", "num_cpus": 1, "step_timeout_s": 20},
    "predictor": {"cache": False},
}
MEND_S = 20.0  # a mend takes about so long, and is not tried with less
ALONE_S = 22.0  # and an engine of one stage


class OneGpuController(Controller):
    """Tells what it has measured, and where its actors are."""

    def __init__(self, args: dict[str, Any]) -> None:
        logging.basicConfig(level=logging.INFO)
        super().__init__(args)
        self.measured: list[probing.Measured] = []
        self.cluster: Cluster | None = None
        measured_stages = probing.measured_stages

        async def keeping(cluster: Cluster, moves: Any) -> Any:
            found = await measured_stages(cluster, moves)
            self.cluster = cluster
            self.measured = [stage for stage, _ in found]
            return found

        calibration.measured_stages = keeping

    async def probed(self) -> list[probing.Measured]:
        """Of each stage."""
        return self.measured

    async def pages(self) -> int:
        assert self.cluster is not None
        return self.cluster.pages

    async def pids(self) -> list[int]:
        """Of the stage actors."""
        assert self.cluster is not None
        actors = self.cluster.crew.actors
        return await asyncio.gather(
            *[actors[c].__ray_call__.remote(_pid) for c in sorted(actors)]
        )

    async def poison(self) -> None:
        """Leave the last stage's GPU context unusable, as a device-side assertion does."""
        assert self.cluster is not None
        actors = self.cluster.crew.actors
        await actors[max(actors)].__ray_call__.remote(_poison)


def _pid(_: Any) -> int:
    return os.getpid()


def _poison(_: Any) -> None:
    place = torch.tensor([1 << 40], device="cuda")
    torch.zeros(8, device="cuda")[place]
    try:
        torch.cuda.synchronize()
    except Exception as error:
        print(f"poisoned: {error}", flush=True)


def run(out: Any) -> None:
    """`out`: medha_actors.bench.gpu_findings.Findings."""
    began = time.perf_counter()
    ray.init(
        num_gpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=200 * 2**20,
    )
    out.add("ray started", time.perf_counter() - began, "s")
    try:
        asyncio.run(_check(out))
        if out.left_s() > ALONE_S:
            asyncio.run(_check_alone(out))
        else:
            out.say("one stage", "no time left")
    finally:
        _keep_logs(out.folder)
        ray.shutdown()


@asynccontextmanager
async def _engine(stages: int) -> AsyncIterator[tuple[RayEngine, Any]]:
    """A started engine and its controller."""
    actor_class: Any = ray.remote(OneGpuController)
    args = {**ARGS, "parallel": {"spp": stages}}
    controller = actor_class.options(num_cpus=0, max_concurrency=1000).remote(args)
    handle = RayEngine(lambda: controller)
    try:
        await handle.start()
        yield handle, controller
    finally:
        await handle.stop()
        await controller.stop.remote()
        ray.kill(controller)


async def _check(out: Any) -> None:
    began = time.perf_counter()
    async with _engine(2) as (handle, controller):
        out.add(
            "two stages on one GPU: started, calibrated",
            time.perf_counter() - began,
            "s",
        )
        _tell_fit(out, "", await controller.probed.remote())
        pages = await controller.pages.remote()
        out.add("pages per group", pages)
        alone = await _use(out, "", handle)

        async def kill() -> None:
            os.kill((await controller.pids.remote())[1], signal.SIGKILL)

        await _survive(out, handle, "kill -9 of a stage", kill, alone)
        await _survive(
            out, handle, "a device assertion", controller.poison.remote, alone
        )
        out.check("the pages stay", pages == await controller.pages.remote())


async def _check_alone(out: Any) -> None:
    """One stage with the GPU to itself: nobody's time slices are in what it measures."""
    began = time.perf_counter()
    async with _engine(1) as (handle, controller):
        out.add("one stage: started, calibrated", time.perf_counter() - began, "s")
        _tell_fit(out, "one stage: ", await controller.probed.remote())
        await _use(out, "one stage: ", handle)


def _tell_fit(out: Any, whose: str, measured: list[probing.Measured]) -> None:
    for number, stage in enumerate(measured):
        name = f"{whose}stage {number}: worst error of"
        out.add(f"{name} held-out steps", stage.worst(True), most=0.05)
        out.add(f"{name} fitted steps", stage.worst(False))
        lines = [str(stage.profile)]
        for probe, seconds, error in zip(
            stage.probes, stage.seconds, stage.errors, strict=True
        ):
            kind = "held out" if probe.held_out else "fitted  "
            parts = "  ".join(
                [f"{p.requests}x{p.tokens}@{p.cached}" for p in probe.parts]
            )
            sampled = " sampled" if probe.sample else ""
            lines.append(
                f"{kind} {seconds * 1e3:9.3f} ms {error:+7.1%}  {parts}{sampled}"
            )
        name = f"probes-{len(measured)}-{number}.txt"
        (out.folder / name).write_text("\n".join(lines) + "\n")
        print("\n".join(lines), flush=True)


async def _use(out: Any, whose: str, handle: RayEngine) -> list[int]:
    """Generations of several kinds; the tokens of one that others are compared with."""
    await generate(handle, prompt_of(64, 1), greedy(4))
    alone = await generate(handle, prompt_of(500), greedy(200))
    out.add(f"{whose}500 tokens alone: first token", alone.ttft_s, "s")
    out.add(f"{whose}alone: decode", 1e3 / alone.tokens_per_s, "ms/token")
    many = [generate(handle, prompt_of(300, salt), greedy(64)) for salt in range(32)]
    began = time.perf_counter()
    async with _busy(out, handle, f"{whose}32 requests together"):
        found = await asyncio.gather(*many)
    seconds = time.perf_counter() - began
    tokens = sum([len(one.tokens) for one in found])
    out.add(f"{whose}32 requests together", tokens / seconds, "tokens/s")
    async with _busy(out, handle, f"{whose}60,000 tokens alone"):
        long = await generate(handle, prompt_of(60_000), greedy(4))
    out.add(f"{whose}60,000 tokens alone: first token", long.ttft_s, "s")
    again = await generate(handle, prompt_of(500), greedy(200))
    out.check(f"{whose}the same tokens again", again.tokens == alone.tokens)
    stats = await handle.stats()
    if stats["predictor_error_p50"] is not None:
        name = f"{whose}predictions in service: of errors"
        out.add(f"{name} P50", stats["predictor_error_p50"], most=0.1)
        out.add(f"{name} P90", stats["predictor_error_p90"])
    return alone.tokens


@asynccontextmanager
async def _busy(out: Any, handle: RayEngine, what: str) -> AsyncIterator[None]:
    """Tells for how much of the time each stage says that it has worked."""
    before = (await handle.stats())["stage_busy_s"]
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    after = (await handle.stats())["stage_busy_s"]
    for stage, (early, late) in enumerate(zip(before, after, strict=True)):
        out.add(f"{what}: stage {stage} at work", (late - early) / seconds)


async def _survive(
    out: Any, handle: RayEngine, what: str, harm: Any, expected: list[int]
) -> None:
    """The request that others are compared with, harmed in the middle."""
    if out.left_s() < MEND_S:
        out.say(what, "no time left")
        return
    work = asyncio.create_task(generate(handle, prompt_of(500), greedy(200)))
    await asyncio.sleep(0.3)  # it is in decode then
    began = time.perf_counter()
    await harm()
    async with asyncio.timeout(max(1.0, out.left_s() - 5)):
        found = await work
    times = found.token_times_s
    gaps = [later - before for before, later in pairwise(times)]
    kept = gaps.index(max(gaps)) + 1  # tokens before the pause
    out.add(f"{what}: the stream pauses", max(gaps), "s")
    out.add(f"{what}: until it has ended", time.perf_counter() - began, "s")
    out.check(
        f"{what}: no token lost, those of before the same",
        len(found.tokens) == len(expected) and found.tokens[:kept] == expected[:kept],
        f"{kept} before",
    )
    # A prefill of known tokens rounds unlike the decodes that made them; drawn weights have ties.
    same = sum([a == b for a, b in zip(found.tokens, expected, strict=False)])
    out.add(f"{what}: tokens that are the same", same, f"of {len(expected)}")


def _keep_logs(folder: Path) -> None:
    """The ends of what the actors wrote."""
    logs = Path("/tmp/ray/session_latest/logs")
    kept = []
    for path in sorted(logs.glob("worker-*")):
        text = path.read_text(errors="replace")
        if text.strip():
            kept.append(f"==== {path.name}\n{text[-6000:]}")
    (folder / "actors.log").write_text("\n".join(kept))


class _Printed:
    """Findings for a terminal."""

    def __init__(self, folder: Path, limit_s: float) -> None:
        self.folder = folder
        self._ends = time.monotonic() + limit_s

    def add(self, name: str, value: float, unit: str = "", **target: float) -> None:
        print(f"{name}: {value:.4g} {unit} {target or ''}", flush=True)

    def check(self, name: str, holds: bool, remark: str = "") -> None:
        print(f"{name}: {'yes' if holds else 'NO'} {remark}", flush=True)

    def say(self, name: str, remark: str) -> None:
        print(f"{name}: {remark}", flush=True)

    def left_s(self) -> float:
        return self._ends - time.monotonic()


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    from tests.gpu import ray_one_gpu

    results = Path(os.environ.get("OUT", "/tmp/ray_one_gpu"))
    results.mkdir(parents=True, exist_ok=True)
    limit_s = float(sys.argv[1]) if len(sys.argv) > 1 else 85.0
    ray_one_gpu.run(_Printed(results, limit_s))
