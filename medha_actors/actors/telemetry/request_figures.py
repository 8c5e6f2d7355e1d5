"""What is counted of requests: how long they wait for what, how they end, which objectives they
meet."""

from __future__ import annotations

from collections import deque

from medha_actors.actors.telemetry.series import Histograms, count, length_class
from medha_actors.core.tally import Tally
from medha_actors.telemetry.histogram import (
    END_TO_END_S,
    LONG_S,
    TOKEN_S,
    Family,
    Histogram,
    Labels,
)
from medha_actors.telemetry.timelines import Timeline

_RECENT = 1024
# OpenTelemetry's names, in Prometheus' spelling and in its own, and our series that tell the same
_GEN_AI = (
    ("request_duration", "request.duration", "medha_e2e_request_latency_seconds"),
    ("time_to_first_token", "time_to_first_token", "medha_time_to_first_token_seconds"),
    (
        "time_per_output_token",
        "time_per_output_token",
        "medha_request_time_per_output_token_seconds",
    ),
)


class RequestFigures:
    """Since the start of the controller. `ttft_s`, `tbt_s`: the last ones."""

    def __init__(self) -> None:
        self.ttft_s = deque[float](maxlen=_RECENT)
        self.tbt_s = deque[float](maxlen=_RECENT)
        self._histograms = Histograms()
        new = self._histograms.new
        by_class = self._histograms.by_class
        self._ttft = by_class(
            "medha_time_to_first_token_seconds", LONG_S, "Arrival to first token"
        )
        self._tbt = by_class(
            "medha_inter_token_latency_seconds",
            TOKEN_S,
            "From one output token to the next",
        )
        self._tpot = new(
            "medha_request_time_per_output_token_seconds",
            TOKEN_S,
            "Mean of a request after its first",
        )
        self._e2e = by_class(
            "medha_e2e_request_latency_seconds", END_TO_END_S, "Arrival to end"
        )
        self._queued = new(
            "medha_request_queue_time_seconds", LONG_S, "Arrival to first chunk"
        )
        self._prefill = new(
            "medha_request_prefill_time_seconds",
            LONG_S,
            "First chunk to prompt computed",
        )
        self._by_tenant = self._histograms.growing(
            "medha_tenant_time_to_first_token_seconds",
            "Arrival to first token, by tenant",
        )
        self._tally = Tally()
        self._endings: dict[Labels, float] = {}
        self._rejections: dict[Labels, float] = {}
        self._objectives: dict[Labels, float] = {}

    def token(self, timeline: Timeline, before: float | None, at: float) -> None:
        """A token; `before`: the instant of the one before it."""
        size = length_class(timeline.prompt_tokens)
        if before is None:
            ttft_s = at - timeline.arrived_at
            self._ttft[size].observe(ttft_s)
            self.ttft_s.append(ttft_s)
            if timeline.tenant:
                self._of_tenant(timeline.tenant).observe(ttft_s)
        else:
            self._tbt[size].observe(at - before)
            self.tbt_s.append(at - before)

    def _of_tenant(self, tenant: str) -> Histogram:
        labels = (("tenant", self._tally.name(tenant)),)
        return self._by_tenant.setdefault(labels, Histogram.of(LONG_S))

    def ended(self, timeline: Timeline) -> None:
        """A request is over."""
        reason = timeline.reason or "error"
        size = length_class(timeline.prompt_tokens)
        count(self._endings, finished_reason=reason)
        if timeline.finished_at is not None:
            self._e2e[size].observe(timeline.finished_at - timeline.arrived_at)
        if timeline.scheduled_at is not None:
            self._queued.observe(timeline.scheduled_at - timeline.arrived_at)
            if timeline.prefilled_at is not None:
                self._prefill.observe(timeline.prefilled_at - timeline.scheduled_at)
        tpot_s = timeline.tpot_s
        if tpot_s is not None:
            self._tpot.observe(tpot_s)
        if reason != "abort":
            missed = timeline.missed()
            for objective in ("ttft", "tpot"):
                if objective == "ttft" or tpot_s is not None:
                    met = "false" if objective in missed else "true"
                    count(
                        self._objectives,
                        objective=objective,
                        met=met,
                        **{"class": size},
                    )

    def rejected(self, status: int) -> None:
        """A request was refused."""
        count(self._rejections, status=str(status))

    def families(self, model: str) -> list[Family]:
        """For `exposition`."""
        return [
            Family(
                "medha_request_success_total",
                "counter",
                "Requests that ended, by reason",
                self._endings,
            ),
            Family(
                "medha_request_rejected_total",
                "counter",
                "Requests refused by the scheduler",
                self._rejections,
            ),
            Family(
                "medha_request_objective_total",
                "counter",
                "Objectives of ended requests, met or not",
                self._objectives,
            ),
            *self._histograms.families(),
            *self._gen_ai(model),
        ]

    def _gen_ai(self, model: str) -> list[Family]:
        """The same under OpenTelemetry's names."""
        label = (
            ("gen_ai_operation_name", "text_completion"),
            ("gen_ai_request_model", model),
        )
        families = []
        for stem, theirs, source in _GEN_AI:
            series = {
                label + own: histogram
                for own, histogram in self._histograms.series(source).items()
            }
            name = f"gen_ai_server_{stem}_seconds"
            text = f"OpenTelemetry's gen_ai.server.{theirs}"
            families.append(Family(name, "histogram", text, histograms=series))
        return families
