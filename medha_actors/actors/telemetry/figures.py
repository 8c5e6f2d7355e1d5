"""Figures: what the engine counts, under vLLM's names with our prefix, plus what only this
scheduler has."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from medha_actors.core.record import BatchRecord
from medha_actors.core.stats import Stats
from medha_actors.messages import Batch, StepResult
from medha_actors.telemetry.histogram import (
    END_TO_END_S,
    ERROR,
    LONG_S,
    SHARE,
    SLACK,
    TOKEN_S,
    TOKENS,
    Family,
    Histogram,
    Labels,
)
from medha_actors.telemetry.timelines import Timeline

CLASSES = ("short", "medium", "long", "huge")  # of prompts
_CLASS_BEGINS = (1024, 8192, 65_536)  # at so many tokens
_RECENT = 1024


def length_class(tokens: int) -> str:
    """The class of a prompt in labels and on the page."""
    return CLASSES[bisect_right(_CLASS_BEGINS, tokens)]


class Figures:
    """Counters since the start of the controller, which alone keeps the engine's figures."""

    def __init__(self, stages: int, groups: int, pages_per_group: int) -> None:
        self._pages = pages_per_group
        self.ttft_s = deque[float](maxlen=_RECENT)
        self.tbt_s = deque[float](maxlen=_RECENT)
        self._histograms: dict[str, tuple[str, dict[Labels, Histogram]]] = {}
        new = self._new
        self._ttft = self._by_class(
            "medha_time_to_first_token_seconds", LONG_S, "Arrival to first token"
        )
        self._tbt = self._by_class(
            "medha_inter_token_latency_seconds", TOKEN_S, "From one output token to the next"
        )
        self._tpot = new(
            "medha_request_time_per_output_token_seconds",
            TOKEN_S,
            "Mean of a request after its first",
        )
        self._e2e = self._by_class(
            "medha_e2e_request_latency_seconds", END_TO_END_S, "Arrival to end"
        )
        self._queued = new("medha_request_queue_time_seconds", LONG_S, "Arrival to first chunk")
        self._prefill = new(
            "medha_request_prefill_time_seconds", LONG_S, "First chunk to prompt computed"
        )
        self._iteration = new("medha_iteration_tokens_total", TOKENS, "Tokens of a batch")
        self._chunk = new("medha_prefill_chunk_tokens", TOKENS, "Tokens of a prefill chunk")
        self._budget = new(
            "medha_batch_budget_used_ratio", SHARE, "Time of a batch over its budget"
        )
        self._error = new(
            "medha_predictor_error_ratio", ERROR, "Relative error of the predicted time of a batch"
        )
        self._slacks: dict[Labels, Histogram] = {}
        self._histograms["medha_prefill_relative_slack"] = (
            "Relative slack of a prefill when a chunk of it is picked, by class of prompt length",
            self._slacks,
        )
        self._endings: dict[Labels, float] = {}
        self._rejections: dict[Labels, float] = {}
        self._objectives: dict[Labels, float] = {}
        self._busy_s = [[0.0] * groups for _ in range(stages)]
        self._exchange_s = [[0.0] * groups for _ in range(stages)]
        self._bubble_s = [[0.0] * groups for _ in range(stages)]
        self._free_at = [[0.0] * groups for _ in range(stages)]
        self.control_s = 0.0
        self.steps = 0
        self.rebuilds = 0
        self._had_rest = [False] * groups  # nobody was live some time since the group's last batch

    def _new(self, name: str, bounds: tuple[float, ...], text: str) -> Histogram:
        histogram = Histogram.of(bounds)
        self._histograms[name] = text, {(): histogram}
        return histogram

    def _by_class(self, name: str, bounds: tuple[float, ...], text: str) -> dict[str, Histogram]:
        """One for each class of prompt length: among many short requests, what a few long ones see
        would not show."""
        histograms = {size: Histogram.of(bounds) for size in CLASSES}
        self._histograms[name] = (
            f"{text}, by class of prompt length",
            {(("class", size),): histogram for size, histogram in histograms.items()},
        )
        return histograms

    # ---------------------------------------------------------------- what happens

    def rest(self) -> None:
        """No request is live: idle stages are no bubble."""
        self._had_rest = [True] * len(self._had_rest)

    def sent(
        self, record: BatchRecord, prefills: Sequence[tuple[str, int, int]], prompts: Sequence[int]
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
        self.steps += 1
        self._iteration.observe(batch.prefill_tokens + batch.decode_tokens)
        slowest_s = 0.0
        for result in results:
            k = result.group
            rested = self._had_rest[result.group]
            self._had_rest[k] = False
            for s, (start, seconds) in enumerate(
                zip(result.stage_starts, result.stage_seconds, strict=True)
            ):
                self._busy_s[s][k] += seconds
                self._exchange_s[s][k] += result.exchange_seconds[s]
                if not rested and self._free_at[s][k]:
                    self._bubble_s[s][k] += max(0.0, start - self._free_at[s][k])
                self._free_at[s][k] = start + seconds
                slowest_s = max(slowest_s, seconds)
        if slowest_s > 0:
            self._budget.observe(slowest_s / batch.budget_s)
            self._error.observe(abs(batch.predicted_s - slowest_s) / slowest_s)

    def token(self, timeline: Timeline, before: float | None, at: float) -> None:
        """A token; `before`: the instant of the one before it."""
        size = length_class(timeline.prompt_tokens)
        if before is None:
            ttft_s = at - timeline.arrived_at
            self._ttft[size].observe(ttft_s)
            self.ttft_s.append(ttft_s)
        else:
            self._tbt[size].observe(at - before)
            self.tbt_s.append(at - before)

    def ended(self, timeline: Timeline) -> None:
        """A request is over."""
        reason = timeline.reason or "error"
        size = length_class(timeline.prompt_tokens)
        _count(self._endings, finished_reason=reason)
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
                    _count(self._objectives, objective=objective, met=met, **{"class": size})

    def rejected(self, status: int) -> None:
        """A request was refused."""
        _count(self._rejections, status=str(status))

    # ---------------------------------------------------------------- what they amount to

    def families(self, stats: Stats, model: str) -> list[Family]:
        """Everything, for `exposition`."""
        families = [*self._gauges(stats), *self._counters(stats)]
        for name, (text, series) in self._histograms.items():
            families.append(Family(name, "histogram", text, histograms=series))
        label = (("gen_ai_operation_name", "text_completion"), ("gen_ai_request_model", model))
        for stem, source in (
            ("request_duration", "medha_e2e_request_latency_seconds"),
            ("time_to_first_token", "medha_time_to_first_token_seconds"),
            ("time_per_output_token", "medha_request_time_per_output_token_seconds"),
        ):
            series = {
                label + own: histogram for own, histogram in self._histograms[source][1].items()
            }
            theirs = stem.replace("request_duration", "request.duration")
            text = f"OpenTelemetry's gen_ai.server.{theirs}"
            name = f"gen_ai_server_{stem}_seconds"
            families.append(Family(name, "histogram", text, histograms=series))
        return families

    def _gauges(self, stats: Stats) -> list[Family]:
        usage = stats.kv_usage_by_group
        pages: dict[Labels, float] = {}
        for k, share in enumerate(usage):
            used = round(share * self._pages)
            pages[("group", str(k)), ("state", "used")] = float(used)
            pages[("group", str(k)), ("state", "free")] = float(self._pages - used)
        families = [
            _gauge("medha_num_requests_running", "Requests past their prefill", stats.running),
            _gauge("medha_num_requests_prefilling", "Prefills under way", stats.prefilling),
            _gauge("medha_num_requests_waiting", "Requests that have not begun", stats.waiting),
            _gauge(
                "medha_kv_cache_usage_perc",
                "Share of the KV pages in use, 1 is all",
                stats.kv_usage,
            ),
            _gauge(
                "medha_prefix_cache_usage_perc",
                "Share of the KV pages that can be found again, in use or not",
                stats.kv_cached,
            ),
            Family("medha_kv_cache_pages", "gauge", "KV pages of a group, in each stage", pages),
            _gauge("medha_batches_in_flight", "Batches in the pipeline", stats.batches_in_flight),
            _gauge(
                "medha_backlog_seconds",
                "Predicted prefill work that is not dispatched",
                stats.backlog_s,
            ),
            _gauge(
                "medha_batch_budget_seconds", "Time one batch may take in one stage", stats.budget_s
            ),
        ]
        scales: dict[Labels, float] = {
            (("kind", "prefill"),): stats.predictor_scale_prefill,
            (("kind", "decode"),): stats.predictor_scale_decode,
        }
        return [
            *families,
            Family("medha_predictor_scale", "gauge", "Online correction of the predictor", scales),
        ]

    def _counters(self, stats: Stats) -> list[Family]:
        def grid(name: str, text: str, seconds: list[list[float]]) -> Family:
            series: dict[Labels, float] = {}
            for s, row in enumerate(seconds):
                for k, value in enumerate(row):
                    series[("stage", str(s)), ("group", str(k))] = value
            return Family(name, "counter", text, series)

        def kinds(name: str, text: str, seconds: tuple[float, float]) -> Family:
            series: dict[Labels, float] = {
                (("kind", "prefill"),): seconds[0],
                (("kind", "decode"),): seconds[1],
            }
            return Family(name, "counter", text, series)

        return [
            _counter(
                "medha_num_preemptions_total",
                "A prefill's turn was taken by another",
                stats.preemptions_total,
            ),
            _counter(
                "medha_num_evictions_total",
                "Requests that lost their KV for want of room",
                stats.evictions_total,
            ),
            _counter(
                "medha_prompt_tokens_total",
                "Prompt tokens, computed or found in the prefix cache",
                stats.prompt_tokens_total,
            ),
            _counter(
                "medha_prefix_cache_queries_total",
                "Prompt tokens looked for in the prefix cache",
                stats.prefix_cache_queries_total,
            ),
            _counter(
                "medha_prefix_cache_hits_total",
                "Prompt tokens found in the prefix cache",
                stats.prefix_cache_hits_total,
            ),
            _counter(
                "medha_generation_tokens_total", "Output tokens", stats.generation_tokens_total
            ),
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
            _counter("medha_steps_total", "Batches that came back", self.steps),
            _counter("medha_pipeline_rebuilds_total", "Times the pipeline was lost", self.rebuilds),
            _counter(
                "medha_control_plane_seconds_total",
                "Time the controller's loop worked on steps",
                self.control_s,
            ),
            kinds(
                "medha_batch_work_seconds_total",
                "What all stages worked on batches",
                stats.worked_s,
            ),
            kinds(
                "medha_batch_calibrated_seconds_total",
                "The same by the calibration at start",
                stats.calibrated_s,
            ),
            grid("medha_stage_busy_seconds_total", "Work of a stage actor", self._busy_s),
            grid(
                "medha_pipeline_bubble_seconds_total",
                "Idle time while requests were live",
                self._bubble_s,
            ),
            grid(
                "medha_kvp_exchange_seconds_total",
                "Exchange of partial attention",
                self._exchange_s,
            ),
        ]


def _gauge(name: str, text: str, value: float) -> Family:
    return Family(name, "gauge", text, {(): float(value)})


def _counter(name: str, text: str, value: float) -> Family:
    return Family(name, "counter", text, {(): float(value)})


def _count(series: dict[Labels, float], **labels: str) -> None:
    key = tuple(labels.items())
    series[key] = series.get(key, 0.0) + 1.0
