"""What merging partial attention costs between the KV groups of a grid, measured on its own links
(paper, 3.3)."""

from __future__ import annotations

import asyncio
from statistics import median

import msgspec

from medha_actors.actors.cluster import Cluster
from medha_actors.core.predictor import Profile
from medha_actors.messages import (
    Introduction,
    SamplingParams,
    Span,
    StepMessage,
    StepResult,
    pack_tokens,
)

_ROWS = 64
_STEPS = 12
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(StepResult).decode


async def with_exchange(profile: Profile, cluster: Cluster) -> Profile:
    """The profile with each stage's exchange cost, from steps whose rows all groups share; leaves
    the grid unlinked."""
    rows = min(_ROWS, (cluster.pages - 1) * cluster.config.kv_cache.page_tokens)
    if rows < 2:
        return profile  # no room for a chunk behind a page
    await cluster.link()
    try:
        one = await asyncio.to_thread(_seconds, cluster, 1)
        many = await asyncio.to_thread(_seconds, cluster, rows)
    finally:
        cluster.hang_up()
    return fit_exchange(profile, one, many, rows, cluster.config.parallel.kvp)


def fit_exchange(
    profile: Profile, one: list[float], many: list[float], rows: int, groups: int
) -> Profile:
    """The profile with what is fixed and what each merged row adds, from seconds per stage of 1 and
    of `rows` rows."""
    others = groups - 1
    stages = []
    for stage, single, chunk in zip(profile.stages, one, many, strict=True):
        row_s = min(max(0.0, chunk - single) / ((rows - 1) * others), single / others)
        stages.append(
            msgspec.structs.replace(
                stage, exchange_s=row_s, exchange_step_s=single - row_s * others
            )
        )
    return Profile(tuple(stages))


def _seconds(cluster: Cluster, rows: int) -> list[float]:
    """Per stage, the median seconds of the exchange in a step of `rows` shared rows.

    Of the groups the quickest counts: what the others report contains their waiting for it.
    """
    found: list[list[float]] = []
    for number in range(_STEPS + 1):
        for group, link in enumerate(cluster.first):
            link.send(
                _encode(_message(cluster, f"exchange-{rows}-{number}", group, rows))
            )
        if cluster.credits_apart and cluster.first is cluster.last:
            for link in cluster.first:
                link.recv()  # its credit
        results = [_decode(link.recv()[0]) for link in cluster.last]
        if cluster.first is not cluster.last:
            for link in cluster.first:
                link.recv()
        found.append(
            [
                min(each)
                for each in zip(*(r.exchange_seconds for r in results), strict=True)
            ]
        )
    return [median(stage) for stage in zip(*found[1:], strict=True)]


def _message(cluster: Cluster, name: str, group: int, rows: int) -> StepMessage:
    """One span of `rows` rows over one page in each group; the last group takes its keys and
    values."""
    groups = cluster.config.parallel.kvp
    page = cluster.config.kv_cache.page_tokens
    writes = group == groups - 1
    start = groups * page
    span = Span(
        request_id=name,
        start=start,
        stop=start + rows,
        token_ids=pack_tokens(i % cluster.spec.vocabulary for i in range(rows)),
        piece_start=group * page,
        piece_tokens=page,
        new_pages=tuple(range(1 + (-(-rows // page) if writes else 0))),
        writes=writes,
        sample=False,
        groups=tuple(range(groups)),
    )
    return StepMessage(
        0,
        (span,),
        (Introduction(name, SamplingParams(max_tokens=1, temperature=0.0)),),
        (name,),
    )
