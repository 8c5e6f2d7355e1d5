"""Calibration: from measured steps of the real stages to the Profile that the scheduler predicts
with (paper, 4.3).

Every stage runs the same synthetic steps at the same time, as in service: chunks of several sizes
on an empty and on a long cache, decodes of several batch sizes at a short and at a long context.
Differences between them give the coefficients. (Of GPUs: probing.py.) The result is kept on disk
under a name made of everything it depends on.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import statistics
import time
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

import msgspec

from medha_actors.actors.cluster import Cluster
from medha_actors.actors.exchange_cost import with_exchange
from medha_actors.actors.probes import Part, Probe, closing, message_of
from medha_actors.actors.probing import measured_stages
from medha_actors.core.predictor import ExecutionModel, Profile, StageProfile
from medha_actors.messages import Move, StepMessage
from medha_actors.model_shares import specs_of
from medha_actors.model_spec import kv_bytes_per_token

_log = logging.getLogger("medha.calibration")
_encode = msgspec.msgpack.Encoder().encode
_FORMAT = 5
# without calibration, corrected online: operations a second, seconds of a step, bytes a
# second to the second tier
_GUESSED = {"cpu": (1e11, 1e-3, 2e9), "cuda": (2e14, 4e-3, 2e10)}
_MOVED = 16  # pages
_CHUNKS = (16, 32, 64, 128, 256, 512)
_SLOPE_CHUNKS = (32, 256)  # measured on a long cache as well
_DECODES = (1, 2, 4, 8, 16, 32)
_SLOPE_DECODES = (1, 8)
_SHORT_TOKENS = 64


class Case(msgspec.Struct, frozen=True):
    """One synthetic step: `rows` spans of `tokens` new positions each, on `cached` positions."""

    rows: int
    tokens: int
    cached: int
    sample: bool


def cases(context_tokens: int, pages: int, page_tokens: int) -> list[Case]:
    """What is measured: what fits into the KV cache, and with a long context only if there is room
    for one."""
    wanted = [Case(1, c, 0, False) for c in _CHUNKS]
    for rows in _DECODES:
        wanted.append(Case(rows, 1, _SHORT_TOKENS, False))
        wanted.append(Case(rows, 1, _SHORT_TOKENS, True))
    if context_tokens > _SHORT_TOKENS:
        wanted += [Case(1, c, context_tokens, False) for c in _SLOPE_CHUNKS]
        wanted += [Case(r, 1, context_tokens, False) for r in _SLOPE_DECODES]
    return [
        case for case in wanted if case.rows * _pages_each(case, page_tokens) <= pages
    ]


def _pages_each(case: Case, page_tokens: int) -> int:
    return -(-(case.cached + case.tokens) // page_tokens)


def step(case: Case, page_tokens: int, vocabulary: int, number: int) -> StepMessage:
    """The case as a message (see message_of)."""
    probe = Probe((Part(case.rows, case.tokens, case.cached),), case.sample)
    return message_of(probe, page_tokens, vocabulary, number)


async def profile_of(cluster: Cluster) -> Profile:
    """The profile of a started cluster: from the disk, or measured now (seconds)."""
    config = cluster.config
    if not config.predictor.calibrate:
        return _guess(cluster)
    path = _cache_path(cluster, await cluster.computes())
    if config.predictor.cache and path.exists():
        return msgspec.json.decode(path.read_bytes(), type=Profile)
    began = time.monotonic()
    moved = min(_MOVED, cluster.pages, cluster.slots)
    if cluster.blueprint.device == "cpu":
        stages = await _measured(cluster, moved)
    else:
        found = await measured_stages(cluster, moves(moved))
        stages = [with_moves(stage.profile, seconds, moved) for stage, seconds in found]
    profile = Profile(tuple(stages))
    if config.parallel.kvp > 1:
        profile = await with_exchange(profile, cluster)
    _log.info("calibrated in %.1f s", time.monotonic() - began)
    if config.predictor.cache:
        _write(path, msgspec.json.encode(profile))
    return profile


async def _measured(cluster: Cluster, moved: int) -> list[StageProfile]:
    """Every stage, from its cases and so many moved pages."""
    config = cluster.config
    page_tokens = config.kv_cache.page_tokens
    context = min(
        config.predictor.probe_context_tokens, (cluster.pages - 1) * page_tokens // 2
    )
    await cluster.fill(-(-max(_SLOPE_DECODES) * (context + page_tokens) // page_tokens))
    measured = cases(context, cluster.pages, page_tokens)
    steps = []
    for number, case in enumerate(measured):
        message = step(case, page_tokens, cluster.spec.vocabulary, number)
        steps += [message, closing(message)]
    packed = [_encode(steps + moves(moved))] * config.parallel.spp
    stages = []
    for row in await cluster.measure(packed, repeats=3):
        stage = fit(dict(zip(measured, row[: len(steps) : 2], strict=True)), context)
        stages.append(with_moves(stage, row[len(steps) :], moved))
    if any(cluster.blueprint.plan(cell).borrowed for cell in cluster.blueprint.nodes):
        return await _measured_alone(cluster, stages)
    return stages


async def _measured_alone(
    cluster: Cluster, stages: list[StageProfile]
) -> list[StageProfile]:
    """The stages with the part of their time that batches take when nobody else computes."""
    page_tokens = cluster.config.kv_cache.page_tokens
    measured = [
        case
        for case in cases(0, cluster.pages, page_tokens)
        if case.sample or case.tokens > 1
    ]
    steps = []
    for number, case in enumerate(measured):
        message = step(case, page_tokens, cluster.spec.vocabulary, number)
        alone = msgspec.structs.replace(message, alone=True)
        steps += [message, closing(message), alone, closing(message)]
    packed = [_encode(steps)] * len(stages)
    found = []
    rows = await cluster.measure(packed, repeats=3, apart=True)
    for stage, row in zip(stages, rows, strict=True):
        both = zip(row[::4], row[2::4], strict=True)
        found.append(with_parts(stage, dict(zip(measured, both, strict=True))))
    return found


def with_parts(
    stage: StageProfile, seconds: dict[Case, tuple[float, float]]
) -> StageProfile:
    """The stage with what its cases take alone, from their seconds with its own cores and with
    all."""
    decode: dict[int, float] = {}
    prefill: dict[int, float] = {}
    for case, (own_s, all_s) in seconds.items():
        parts = decode if case.tokens == 1 else prefill
        parts[case.rows * case.tokens] = min(1.0, all_s / own_s)
    return msgspec.structs.replace(
        stage,
        alone_decode=tuple(sorted(decode.items())),
        alone_prefill=tuple(sorted(prefill.items())),
    )


def _guess(cluster: Cluster) -> Profile:
    """Without calibration."""
    spec = cluster.spec
    parallel = cluster.config.parallel
    flops, step_s, bytes_per_s = _GUESSED[cluster.blueprint.device]
    token_bytes = max(
        [
            kv_bytes_per_token(rank, (0, spec.layers), cluster.blueprint.dtype)
            for rank in specs_of(spec, parallel.tp)
        ]
    )
    page_bytes = cluster.config.kv_cache.page_tokens * token_bytes
    return ExecutionModel.analytic(
        parallel.spp,
        token_s=2 * spec.active_parameters / flops / parallel.tp,
        step_s=step_s,
        page_s=page_bytes / bytes_per_s,
    ).profile


def moves(count: int) -> list[StepMessage]:
    """So many pages to the second tier, and back; nothing where there is none."""
    if not count:
        return []
    return [
        StepMessage(
            -1, (), moves=tuple([Move(page, page, load) for page in range(count)])
        )
        for load in (False, True)
    ]


def with_moves(stage: StageProfile, seconds: list[float], count: int) -> StageProfile:
    """The stage with the seconds of a page, from those of `moves`."""
    if not seconds:
        return stage
    save_s, load_s = seconds
    return msgspec.structs.replace(stage, save_s=save_s / count, load_s=load_s / count)


def fit(seconds: dict[Case, float], context_tokens: int) -> StageProfile:
    """One stage's coefficients from its measured cases; every one is at least zero, the table
    starts above zero and never falls."""
    far = {
        c: s for c, s in seconds.items() if c.cached == context_tokens > _SHORT_TOKENS
    }
    slopes = {
        c.tokens: (s - seconds[Case(1, c.tokens, 0, False)]) / context_tokens
        for c, s in far.items()
        if c.tokens > 1
    }
    decode_kv_s = _middle(
        (s - seconds[Case(c.rows, 1, _SHORT_TOKENS, False)])
        / (c.rows * (context_tokens - _SHORT_TOKENS))
        for c, s in far.items()
        if c.tokens == 1
    )
    near = {
        c.rows: s
        for c, s in seconds.items()
        if c.tokens == 1 and c.cached == _SHORT_TOKENS and not c.sample
    }
    decode_kv_s = min(decode_kv_s, _most(near) / _SHORT_TOKENS)
    pair_s, prefill_kv_s = _line(slopes, decode_kv_s)
    decodes = {rows: s - rows * _SHORT_TOKENS * decode_kv_s for rows, s in near.items()}
    chunks = {
        c.tokens: s - pair_s * c.tokens**2 / 2
        for c, s in seconds.items()
        if c.tokens > 1 and c.cached == 0
    }
    span_s = _middle(
        (decodes[rows] - chunks[rows]) / (rows - 1)
        for rows in decodes.keys() & chunks.keys()
    )
    span_s = min(span_s, _most(decodes))
    rows = {
        rows: s - rows * span_s for rows, s in decodes.items() if rows < min(chunks)
    }
    rows |= {tokens: s - span_s for tokens, s in chunks.items()}
    heads = (
        (s - seconds[Case(c.rows, 1, c.cached, False)]) / c.rows
        for c, s in seconds.items()
        if c.sample and 1 < c.rows <= 8
    )
    return StageProfile(
        rows=_rising(rows),
        span_s=span_s,
        pair_s=pair_s,
        prefill_kv_s=prefill_kv_s,
        decode_kv_s=decode_kv_s,
        head_s=_middle(heads),
    )


def _line(slopes: dict[int, float], most: float) -> tuple[float, float]:
    """Per-pair and per-cached-token seconds from seconds per cached token at one or two chunk
    sizes.

    `most`: what a decode takes for a cached token; a chunk reads the same bytes, so more than that
    is a disturbance.
    """
    if len(slopes) < 2:
        return (
            (max(0.0, next(iter(slopes.values()))) / next(iter(slopes)), 0.0)
            if slopes
            else (0.0, 0.0)
        )
    (small, low), (large, high) = sorted(slopes.items())
    pair_s = max(0.0, (high - low) / (large - small))
    read_s = max(0.0, low - pair_s * small)
    return (pair_s, read_s) if read_s <= most else (max(0.0, high - most) / large, most)


def _middle(values: Iterable[float]) -> float:
    found = list(values)
    return max(0.0, statistics.median(found)) if found else 0.0


def _most(steps: dict[int, float]) -> float:
    """What each row of steps with so many rows can cost: at most half of each. More is a
    disturbance, and would leave nothing, or less, for the step itself."""
    return min([s / rows for rows, s in steps.items()], default=0.0) / 2


def _rising(table: dict[int, float]) -> tuple[tuple[int, float], ...]:
    """The table sorted, with every value at least as large as the one before."""
    rows = sorted(table)
    return tuple(
        zip(rows, accumulate((max(0.0, table[row]) for row in rows), max), strict=True)
    )


def _cache_path(cluster: Cluster, computes: list[str]) -> Path:
    """One file per everything that the profile depends on; `computes`: what does."""
    config = cluster.config
    machine = (
        platform.node(),
        platform.processor() or platform.machine(),
        os.cpu_count(),
    )
    parts = (
        _FORMAT,
        cluster.spec,
        cluster.blueprint.device,
        cluster.blueprint.dtype,
        cluster.blueprint.layers,
        cluster.blueprint.gpus,
        computes,
        config.scheduler.max_batch_tokens,
        config.scheduler.max_running_requests,
        config.parallel.kvp,
        config.parallel.tp,
        config.actors,
        config.kv_cache,
        machine,
    )
    name = hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:24]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "medha" / "profiles" / f"{name}.json"


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)
