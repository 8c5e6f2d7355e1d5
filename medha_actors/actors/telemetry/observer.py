"""Observer: what the controller calls while it works. None of it waits, logs, or sends anything."""

from __future__ import annotations

from collections.abc import Sequence

from medha_actors.actors.telemetry.figures import Figures
from medha_actors.actors.telemetry.recorder import Recorder
from medha_actors.config import TelemetryConfig
from medha_actors.core.batch import Batch
from medha_actors.core.kv_plan import Grid
from medha_actors.core.record import BatchRecord
from medha_actors.messages import (
    Accepted,
    Event,
    FinishedEvent,
    Rejected,
    Request,
    StepResult,
    TokenEvent,
)
from medha_actors.telemetry.histogram import Family


class Silence:
    """Telemetry is off: nothing is kept."""

    def answered(
        self, request: Request, answer: Accepted | Rejected, now: float
    ) -> None:
        """The scheduler has taken or refused a request."""

    def sent(self, batch: Batch, record: BatchRecord, now: float) -> None:
        """A batch goes to the stages."""

    def done(self, results: Sequence[StepResult], now: float) -> None:
        """All results of a batch are here."""

    def happened(self, events: Sequence[Event]) -> None:
        """Events on their way to the clients."""

    def lost(self, now: float) -> None:
        """The pipeline is gone."""

    def gone(self, replica: str) -> None:
        """An ingress replica has ended."""

    def worked(self, seconds: float) -> None:
        """The controller's loop has dealt with a frame."""


class Observer(Silence):
    """Timelines and figures of one controller."""

    def __init__(self, config: TelemetryConfig, grid: Grid) -> None:
        self.recorder = Recorder(config.timelines, config.max_chunk_spans)
        self.figures = Figures(grid.stages, grid.groups, grid.pages_per_group)
        # what each ingress replica counts, as it last told us
        self.replicas: dict[str, list[Family]] = {}

    def answered(
        self, request: Request, answer: Accepted | Rejected, now: float
    ) -> None:
        if isinstance(answer, Rejected):
            self.figures.requests.rejected(answer.status)
            return
        if not self.recorder.live:
            self.figures.batches.rest()
        self.recorder.accepted(request, answer, now)

    def sent(self, batch: Batch, record: BatchRecord, now: float) -> None:
        prefills = self.recorder.sent(batch, record, now)
        if prefills:
            live = self.recorder.live
            prompts = [live[request_id].prompt_tokens for request_id, _, _ in prefills]
            self.figures.batches.sent(record, prefills, prompts)

    def done(self, results: Sequence[StepResult], now: float) -> None:
        batch = self.recorder.done(results, now)
        if batch is not None:
            self.figures.batches.done(batch, results)

    def happened(self, events: Sequence[Event]) -> None:
        live = self.recorder.live
        happened = self.recorder.happened
        token = self.figures.requests.token
        for event in events:
            if isinstance(event, TokenEvent):
                timeline = live.get(event.request_id)
                if timeline is not None:
                    token(timeline, timeline.last_token_at, event.at)
                    happened(event)
            elif isinstance(event, FinishedEvent):
                timeline = happened(event)
                if timeline is not None:
                    self.figures.requests.ended(timeline)

    def lost(self, now: float) -> None:
        self.figures.batches.rebuilds += 1
        self.figures.batches.rest()
        self.recorder.lost(now)

    def gone(self, replica: str) -> None:
        self.replicas.pop(replica, None)

    def worked(self, seconds: float) -> None:
        self.figures.batches.control_s += seconds
