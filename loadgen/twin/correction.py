"""What a server's calibration cannot know: the way to it, and how fast it really was beside clients
and other work."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from loadgen.errors import LoadgenError
from loadgen.judge.isolated import Points
from loadgen.records import PlannedRequest
from loadgen.twin.deployment import Deployment
from loadgen.twin.replay import Played, play
from medha_actors.core.group_load import GroupLoad
from medha_actors.core.predictor import ExecutionModel, Profile


class SlowedModel(ExecutionModel):
    """The stages as they really are while others use the machine too: the profile times one factor
    for decodes alone, one for other batches."""

    def __init__(
        self, profile: Profile, prefill: float = 1.0, decode: float = 1.0
    ) -> None:
        super().__init__(profile)
        self._prefill_factor = prefill
        self._decode_factor = decode

    def stage_seconds(self, load: GroupLoad) -> tuple[float, ...]:
        factor = self._prefill_factor if load.prefill_rows else self._decode_factor
        return tuple([factor * seconds for seconds in super().stage_seconds(load)])


class Correction(msgspec.Struct, frozen=True):
    """Seconds on the way; how much slower than its calibration the server was, and by how much that
    varies."""

    path_s: float = 0.0
    prefill: float = 1.0
    decode: float = 1.0
    noise: float = 0.0

    def slower(self, factor: float) -> Correction:
        """All work slower by a factor."""
        return msgspec.structs.replace(
            self, prefill=self.prefill * factor, decode=self.decode * factor
        )

    def __str__(self) -> str:
        return (
            f"path {1000 * self.path_s:.1f} ms; against its calibration the server took "
            f"{self.prefill:.2f} times as long for prefill, {self.decode:.2f} for decode, within "
            f"{self.noise:.0%}"
        )


def correction_of(deployment: Deployment, points: Points) -> Correction:
    """Path and scale from the idle server: two numbers from several prompt lengths."""
    lengths = [length for length, _ in points]
    twin = np.array([_idle_s(deployment, length) for length in lengths])
    real = np.array([seconds for _, seconds in points])
    if len(points) < 3:
        scale = float(np.median(real / twin))
        return Correction(0.0, scale, scale)
    weights = 1 / real
    terms = np.stack([np.ones_like(twin), twin], axis=1) * weights[:, None]
    (path_s, scale), *_ = np.linalg.lstsq(terms, np.ones_like(real), rcond=None)
    if path_s < 0:
        path_s = 0.0
        scale = (twin * weights).sum() / ((twin * weights) ** 2).sum()
    return Correction(float(path_s), float(scale), float(scale))


def replay(
    deployment: Deployment,
    requests: Sequence[PlannedRequest],
    correction: Correction,
    seed: int = 0,
) -> Played:
    """The twin's run on a machine that is so much slower; a client sees each token after the way to
    it."""
    reality = SlowedModel(deployment.profile(), correction.prefill, correction.decode)
    seeded = msgspec.structs.replace(deployment, seed=seed)
    played = play(
        seeded, requests, record=True, reality=reality, noise=correction.noise
    )
    # in the record, the way in and the way out both come before a token
    for entry in played.records:
        entry.token_times = type(entry.token_times)(
            "d", [at + correction.path_s for at in entry.token_times]
        )
        entry.ended_at = (
            None if entry.ended_at is None else entry.ended_at + correction.path_s
        )
    return played


def as_busy(
    seconds: float,
    deployment: Deployment,
    requests: Sequence[PlannedRequest],
    correction: Correction,
) -> Correction:
    """Slowed until the twin's stages work as many seconds as the server's did; twice: slow stages
    get other chunks."""
    for _ in range(2):
        played = replay(deployment, requests, correction)
        span_s = played.duration_s - (requests[0].at or 0.0)
        correction = correction.slower(seconds / (sum(played.busy) * span_s))
    return correction


def busy_s(metrics: Sequence[str]) -> float:
    """Seconds that all stages worked between two /metrics pages."""
    return _growth(metrics, "medha_stage_busy_seconds_total")


def own_correction(metrics: Sequence[str], correction: Correction) -> Correction:
    """How much longer batches took than calibrated, by kind, and their mean error, from /metrics;
    the path stays."""
    factors = {}
    for kind in ("prefill", "decode"):
        actual_s = _growth(metrics, "medha_batch_work_seconds_total", kind)
        calibrated_s = _growth(metrics, "medha_batch_calibrated_seconds_total", kind)
        factors[kind] = actual_s / calibrated_s if calibrated_s > 0 else 1.0
    errors = _growth(metrics, "medha_predictor_error_ratio_sum")
    batches = _growth(metrics, "medha_predictor_error_ratio_count")
    # of a normal distribution, from its mean absolute value
    noise = errors / max(batches, 1) * math.sqrt(math.pi / 2)
    return Correction(correction.path_s, **factors, noise=noise)


def _idle_s(deployment: Deployment, length: int) -> float:
    lone = PlannedRequest(index=0, prompt_tokens=length, output_tokens=1, at=0.0)
    return float(play(deployment, [lone]).records[0].token_times[0])


def batches_and_tokens(name: str) -> tuple[float, float]:
    """Batches and tokens so far, of a /metrics page."""
    batches = _total(name, "medha_iteration_tokens_total_count")
    return batches, _total(name, "medha_iteration_tokens_total_sum")


def chunks_and_tokens(name: str, most: int) -> tuple[float, float, float]:
    """Prefill chunks so far, their tokens, and how many had `most` tokens or fewer, of a /metrics
    page."""
    small = re.search(
        rf'^medha_prefill_chunk_tokens_bucket\{{[^}}]*le="{most}"\}}\s+(\S+)',
        _read(name),
        re.MULTILINE,
    )
    count = _total(name, "medha_prefill_chunk_tokens_count")
    tokens = _total(name, "medha_prefill_chunk_tokens_sum")
    return count, tokens, float(small[1]) if small else 0.0


def _growth(metrics: Sequence[str], metric: str, kind: str | None = None) -> float:
    """How much a metric grew from one /metrics page to the other."""
    before, after = metrics
    return _total(after, metric, kind) - _total(before, metric, kind)


def _total(name: str, metric: str, kind: str | None = None) -> float:
    """The sum of a metric's series on a /metrics page, or of those of a kind."""
    label = "" if kind is None else rf'\{{[^}}]*kind="{kind}"'
    values = re.findall(rf"^{metric}{label}\S*\s+(\S+)", _read(name), re.MULTILINE)
    if not values:
        raise LoadgenError(
            f"--metrics: {name} has no {metric}" + (f" of {kind}" if kind else "")
        )
    return sum(float(value) for value in values)


def _read(name: str) -> str:
    try:
        return Path(name).read_text()
    except OSError as error:
        raise LoadgenError(f"--metrics: cannot read {name}: {error.strerror}") from None
