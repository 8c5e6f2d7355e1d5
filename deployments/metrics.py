"""Figures of one ingress replica, and GET /metrics: the engine's and every replica's, whichever
replica is asked.

The controller alone counts what the engine does. A replica counts what only it sees, labels it
`replica`, and reports it to the controller a moment after it has changed, so that one scrape
through the load balancer gets all of them.
"""

from __future__ import annotations

from medha_actors.telemetry.histogram import (
    END_TO_END_S,
    LONG_S,
    Family,
    Histogram,
    Labels,
    exposition,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ReplicaFigures:
    """HTTP requests as one replica sees them."""

    def __init__(self, replica: str) -> None:
        self._replica: Labels = (("replica", replica),)
        self._requests: dict[Labels, float] = {}
        self._seconds: dict[Labels, Histogram] = {}
        self._tokenize = Histogram.of(LONG_S)
        self.open = 0
        self.spans_sent = self.spans_lost = 0
        self.tasks = 0

    def ended(self, route: str, status: int | None, seconds: float) -> None:
        """A response is complete; `status` None: the client left before it began."""
        key = (*self._replica, ("route", route), ("status", str(status or 499)))
        self._requests[key] = self._requests.get(key, 0.0) + 1.0
        key = (*self._replica, ("route", route))
        if key not in self._seconds:
            self._seconds[key] = Histogram.of(END_TO_END_S)
        self._seconds[key].observe(seconds)

    def tokenized(self, seconds: float) -> None:
        """A body was checked and its prompts tokenised."""
        self._tokenize.observe(seconds)

    def families(self) -> list[Family]:
        """Everything, for `exposition`."""
        own = self._replica
        spans: dict[Labels, float] = {
            (*own, ("state", "sent")): float(self.spans_sent),
            (*own, ("state", "lost")): float(self.spans_lost),
        }
        return [
            Family(
                "medha_http_requests_total",
                "counter",
                "HTTP requests to generate",
                dict(self._requests),
            ),
            Family(
                "medha_http_requests_open",
                "gauge",
                "Responses under way",
                {own: float(self.open)},
            ),
            Family(
                "medha_replica_tasks",
                "gauge",
                "Tasks on the event loop",
                {own: float(self.tasks)},
            ),
            Family(
                "medha_trace_spans_total",
                "counter",
                "Spans for the tracing backend",
                spans,
            ),
            Family(
                "medha_http_request_duration_seconds",
                "histogram",
                "First byte in to last out",
                {},
                self._seconds,
            ),
            Family(
                "medha_tokenize_seconds",
                "histogram",
                "Body read to prompt tokenised",
                {},
                {own: self._tokenize},
            ),
        ]


def page(families: list[Family], model: str, engine_up: bool) -> str:
    """The text of /metrics."""
    up = Family(
        "medha_engine_up", "gauge", "The controller answers", {(): float(engine_up)}
    )
    return exposition([up, *families], (("model_name", model),))
