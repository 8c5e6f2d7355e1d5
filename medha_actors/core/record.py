"""What the scheduler remembers of its last decision, for traces. Facts only: who looks at them is
not its business."""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

import msgspec

from medha_actors.core.tenants import TenantQueues


class Slack(NamedTuple):
    """How urgent a prefill was when a chunk of it was picked."""

    request_id: str
    slack_s: (
        float  # deadline - grace - now - remaining work as it passes under the load
    )
    # predicted prefill under the load: slack over this is the relative slack of LARS (paper, 4.1)
    total_work_s: float


class BatchRecord(NamedTuple):
    """Why batch `batch_id` is as it is. Pairs are (who had to wait, who took its place)."""

    batch_id: int
    # of the prefills it computes a chunk of, in the order they were picked
    slacks: tuple[Slack, ...]
    preempted: tuple[
        tuple[str, str], ...
    ]  # unfinished prefills whose turn another took
    # requests that lost their KV since the batch before
    evicted: tuple[tuple[str, str], ...]


class Waiting(msgspec.Struct, frozen=True):
    """A request whose prefill is not wholly dispatched, as the live page shows the queue."""

    request_id: str
    relative_slack: float
    # until its prefill is through, as things stand: the work before it and its own
    finish_in_s: float
    deadline_in_s: float
    done_tokens: int
    total_tokens: int
    started: bool
    tenant: str = ""


def waiting(queue: TenantQueues, groups: int, now: float, limit: int) -> list[Waiting]:
    """The first `limit` requests in the order of the policy."""
    rows = []
    ahead_s = 0.0
    for state in islice(queue.ordered(now), limit):
        ahead_s += state.remaining_s / groups
        rows.append(
            Waiting(
                request_id=state.id,
                relative_slack=state.relative_slack(now),
                finish_in_s=max(ahead_s, state.remaining_s),
                deadline_in_s=state.due_at - now,
                done_tokens=max(state.hit, state.dispatched),
                total_tokens=state.goal,
                started=bool(state.pieces),
                tenant=state.tenant,
            )
        )
    return rows
