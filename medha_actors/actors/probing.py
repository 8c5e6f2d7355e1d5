"""Probing: the stages of a grid on GPUs, measured with the probes and fitted."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from medha_actors.actors import fitting
from medha_actors.actors.cluster import Cluster
from medha_actors.actors.probes import (
    Limits,
    Probe,
    again,
    closing,
    message_of,
    pages_of,
    probes,
)
from medha_actors.core.predictor import StageProfile
from medha_actors.messages import StepMessage

_log = logging.getLogger("medha.calibration")
_encode = msgspec.msgpack.Encoder().encode
_REPEATS = 5


class Measured(msgspec.Struct, frozen=True):
    """A stage's profile; the seconds of each probe, and how wrong the profile is of each (relative
    to what was measured)."""

    profile: StageProfile
    probes: tuple[Probe, ...]
    seconds: tuple[float, ...]
    errors: tuple[float, ...]

    def worst(self, held_out: bool) -> float:
        """The largest error of the probes that were held out, or of those that were fitted."""
        kind = [
            abs(error)
            for probe, error in zip(self.probes, self.errors, strict=True)
            if probe.held_out == held_out
        ]
        return max(kind, default=0.0)


async def measured_stages(
    cluster: Cluster, moves: Sequence[StepMessage]
) -> list[tuple[Measured, list[float]]]:
    """Per stage what the probes tell, and the seconds of `moves`, which come after them; leaves the
    grid unlinked."""
    tried = probes(limits_of(cluster))
    page_tokens = cluster.config.kv_cache.page_tokens
    await cluster.fill(pages_of(tried, page_tokens))
    steps = []
    for number, probe in enumerate(tried):
        message = message_of(probe, page_tokens, cluster.spec.vocabulary, number)
        steps += [message, again(message), closing(message)]
    stages = cluster.crew.shape.stages
    packed = [_encode([*steps, *moves])] * stages
    found = []
    for stage, row in enumerate(await cluster.measure(packed, _REPEATS)):
        measured = fitted(tried, row[1 : len(steps) : 3])
        _log.info(
            "stage %d: predictions are wrong by at most %.1f%% of fitted steps, %.1f%% of others",
            stage,
            100 * measured.worst(held_out=False),
            100 * measured.worst(held_out=True),
        )
        found.append((measured, row[len(steps) :]))
    return found


def fitted(tried: Sequence[Probe], seconds: Sequence[float]) -> Measured:
    """The profile of the probes that are not held out, and how good it is on all."""
    loads = [probe.load() for probe in tried]
    known = [
        (load, s)
        for probe, load, s in zip(tried, loads, seconds, strict=True)
        if not probe.held_out
    ]
    profile = fitting.fit([load for load, _ in known], [s for _, s in known])
    errors = fitting.errors(profile, loads, seconds)
    return Measured(profile, tuple(tried), tuple(seconds), tuple(errors))


def limits_of(cluster: Cluster) -> Limits:
    """What batches, requests and the pool of a grid can be."""
    config = cluster.config
    return Limits(
        batch_tokens=config.scheduler.max_batch_tokens,
        requests=config.scheduler.max_running_requests,
        positions=cluster.spec.max_positions,
        pages=cluster.pages,
        page_tokens=config.kv_cache.page_tokens,
    )
