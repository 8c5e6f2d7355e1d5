"""HttpRecord: one HTTP request as an ingress replica saw it."""

from __future__ import annotations

import time

from deployments.job import Job
from deployments.keys import Key
from medha_actors.telemetry.traceparent import TraceParent


class HttpRecord:
    """Where it stands in its trace, and its instants (epoch seconds)."""

    __slots__ = (
        "admitted_at",
        "arrived_at",
        "body_at",
        "ended_at",
        "job",
        "key",
        "method",
        "parent",
        "route",
        "span",
        "status",
    )

    def __init__(
        self, method: str, route: str, parent: TraceParent | None, span: TraceParent
    ) -> None:
        self.method = method
        self.route = route
        self.parent = parent
        self.span = span
        self.arrived_at = time.time()
        self.ended_at = 0.0
        self.body_at: float | None = None
        self.admitted_at: float | None = None
        self.status: int | None = None
        self.job: Job | None = None
        self.key: Key | None = None

    def admitted(self, job: Job, body_at: float) -> None:
        """The body, whole at `body_at`, has become a job."""
        self.job = job
        self.body_at = body_at
        self.admitted_at = time.time()

    @property
    def request_ids(self) -> list[str]:
        """Of its choices in the engine; empty if it was not admitted."""
        if self.job is None:
            return []
        return [choice.request.id for choice in self.job.choices]
