"""What is counted of batches: what is in them, how long they take, and what the stages do
meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

from medha_actors.actors.telemetry.series import Histograms, counter, length_class
from medha_actors.core.batch import Batch
from medha_actors.core.record import BatchRecord
from medha_actors.messages import StepResult
from medha_actors.telemetry.histogram import (
    ERROR,
    SHARE,
    SLACK,
    TOKENS,
    Family,
    Histogram,
    Labels,
)


class BatchFigures:
    """Since the start of the controller."""

    def __init__(self, stages: int, groups: int) -> None:
        self._histograms = Histograms()
        new = self._histograms.new
        self._iteration = new(
            "medha_iteration_tokens_total", TOKENS, "Tokens of a batch"
        )
        self._chunk = new(
            "medha_prefill_chunk_tokens", TOKENS, "Tokens of a prefill chunk"
        )
        self._budget = new(
            "medha_batch_budget_used_ratio", SHARE, "Time of a batch over its budget"
        )
        self._error = new(
            "medha_predictor_error_ratio",
            ERROR,
            "Relative error of the predicted time of a batch",
        )
        self._slacks = self._histograms.growing(
            "medha_prefill_relative_slack",
            "Relative slack of a prefill when a chunk of it is picked, by class of prompt length",
        )
        self._busy_s = [[0.0] * groups for _ in range(stages)]
        self._exchange_s = [[0.0] * groups for _ in range(stages)]
        self._bubble_s = [[0.0] * groups for _ in range(stages)]
        self._free_at = [[0.0] * groups for _ in range(stages)]
        # nobody was live some time since the group's last batch
        self._had_rest = [False] * groups
        self._steps = 0
        self.rebuilds = 0
        self.control_s = 0.0

    def rest(self) -> None:
        """No request is live: idle stages are no bubble."""
        self._had_rest = [True] * len(self._had_rest)

    def sent(
        self,
        record: BatchRecord,
        prefills: Sequence[tuple[str, int, int]],
        prompts: Sequence[int],
    ) -> None:
        """`prefills` of a batch: request, first position, tokens; `prompts`: the lengths of their
        prompts."""
        for _, _, tokens in prefills:
            self._chunk.observe(tokens)
        for slack, prompt in zip(record.slacks, prompts, strict=False):
            label = (("class", length_class(prompt)),)
            histogram = self._slacks.get(label)
            if histogram is None:
                histogram = self._slacks[label] = Histogram.of(SLACK)
            histogram.observe(slack.slack_s / max(slack.total_work_s, 1e-9))

    def done(self, batch: Batch, results: Sequence[StepResult]) -> None:
        """A batch came back."""
        self._steps += 1
        self._iteration.observe(batch.prefill_tokens + batch.decode_tokens)
        for result in results:
            self._worked(result)
        slowest_s = max(
            [max(result.stage_seconds, default=0.0) for result in results], default=0.0
        )
        if slowest_s > 0:
            self._budget.observe(slowest_s / batch.budget_s)
            self._error.observe(abs(batch.predicted_s - slowest_s) / slowest_s)

    def _worked(self, result: StepResult) -> None:
        """The stages of one group have done their part."""
        group = result.group
        rested = self._had_rest[group]
        self._had_rest[group] = False
        times = zip(result.stage_starts, result.stage_seconds, strict=True)
        for stage, (start, seconds) in enumerate(times):
            self._busy_s[stage][group] += seconds
            self._exchange_s[stage][group] += result.exchange_seconds[stage]
            free_at = self._free_at[stage][group]
            if not rested and free_at:
                self._bubble_s[stage][group] += max(0.0, start - free_at)
            self._free_at[stage][group] = start + seconds

    def families(self) -> list[Family]:
        """For `exposition`."""
        return [
            counter("medha_steps_total", "Batches that came back", self._steps),
            counter(
                "medha_pipeline_rebuilds_total",
                "Times the pipeline was lost",
                self.rebuilds,
            ),
            counter(
                "medha_control_plane_seconds_total",
                "Time the controller's loop worked on steps",
                self.control_s,
            ),
            _grid(
                "medha_stage_busy_seconds_total", "Work of a stage actor", self._busy_s
            ),
            _grid(
                "medha_pipeline_bubble_seconds_total",
                "Idle time while requests were live",
                self._bubble_s,
            ),
            _grid(
                "medha_kvp_exchange_seconds_total",
                "Exchange of partial attention",
                self._exchange_s,
            ),
            *self._histograms.families(),
        ]


def _grid(name: str, text: str, seconds: list[list[float]]) -> Family:
    """A counter of each stage and group."""
    series: dict[Labels, float] = {}
    for stage, row in enumerate(seconds):
        for group, value in enumerate(row):
            series[("stage", str(stage)), ("group", str(group))] = value
    return Family(name, "counter", text, series)
