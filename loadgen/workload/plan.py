"""From options to the list of requests that a run will send."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from loadgen.errors import LoadgenError
from loadgen.flags import check
from loadgen.records import PlannedRequest
from loadgen.workload.arrivals import arrival_times
from loadgen.workload.mixes import synthetic, until, with_arrivals, within
from loadgen.workload.options import (
    DEFAULT_COUNT,
    DEFAULT_SESSIONS,
    PaceOptions,
    WorkloadOptions,
)
from loadgen.workload.sessions import sessions, whole
from loadgen.workload.sharing import with_known
from loadgen.workload.traces import TraceOptions, read_trace, trace_path


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What will be sent. `dropped` requests did not fit in the model's context."""

    requests: list[PlannedRequest]
    closed_loop: bool
    dropped: int = 0

    @property
    def longest(self) -> int:
        return max(
            request.prompt_tokens + request.output_tokens for request in self.requests
        )

    @property
    def shortest_prompt(self) -> int:
        return min(request.prompt_tokens for request in self.requests)

    @property
    def sessions(self) -> int:
        """How many there are."""
        return sum(
            request.turn is not None and request.after is None
            for request in self.requests
        )

    def describe(self) -> str:
        """One line for people."""
        prompts = [request.prompt_tokens for request in self.requests]
        outputs = sum(request.output_tokens for request in self.requests)
        long = sum(request.kind == "long" for request in self.requests)
        text = (
            f"{len(prompts)} requests ({long} long), prompts of {min(prompts)} to {max(prompts)} "
            "tokens"
        )
        text += f" ({sum(prompts):,} in all), answers {outputs:,} tokens in all"
        if self.sessions:
            text += f", in {self.sessions} sessions"
        last = max([request.at or 0.0 for request in self.requests])
        if last and not self.closed_loop:
            text += f", sent over {last:.1f} s"
        return text + (
            f"; {self.dropped} too long ones left out" if self.dropped else ""
        )


def build_plan(workload: WorkloadOptions, pace: PaceOptions) -> Plan:
    """Raises LoadgenError for options that make no sense together, and for traces that cannot be
    read."""
    check(workload)
    check(pace)
    _refuse_contradictions(workload, pace)
    timed = False
    if workload.sessions:
        requests = _sessions(workload, pace)
    elif workload.dataset_path is not None and workload.dataset_name != "random":
        requests = read_trace(
            trace_path(workload.dataset_path), trace_options(workload)
        )
        has_times = requests[0].at is not None
        timed = has_times and pace.request_rate is None and not pace.closed_loop
    else:
        count = _count(workload.num_prompts, DEFAULT_COUNT, workload.duration, pace)
        requests = synthetic(workload.mix(), count, workload.seed, workload.scales())
    closed = pace.closed_loop and not timed
    if closed:
        requests = [msgspec.structs.replace(request, at=None) for request in requests]
    elif not timed:
        requests = with_arrivals(requests, _instants(pace, workload.seed))
    requests = whole(until(requests, workload.duration))
    requests, dropped = within(requests, workload.max_model_len)
    return Plan(
        requests=with_known(whole(requests)), closed_loop=closed, dropped=dropped
    )


def _sessions(workload: WorkloadOptions, pace: PaceOptions) -> list[PlannedRequest]:
    return sessions(
        workload.session_mixes(),
        _count(workload.num_sessions, DEFAULT_SESSIONS, workload.duration, pace),
        workload.seed,
        scale=workload.scales(),
        scale_time=workload.scale_time,
        long_threshold=workload.long_threshold,
    )


def trace_options(workload: WorkloadOptions) -> TraceOptions:
    """The part of the options that is about traces."""
    scale_input, scale_output = workload.scales()
    return TraceOptions(
        format=workload.dataset_name,
        limit=workload.num_prompts,
        scale_input=scale_input,
        scale_output=scale_output,
        scale_time=workload.scale_time,
        long_threshold=workload.long_threshold,
        block_tokens=workload.timed_trace_chunk_hash_size,
        seconds_per_unit=workload.timed_trace_sec_multiplier,
    )


def _instants(pace: PaceOptions, seed: int) -> Iterator[float]:
    rate = math.inf if pace.request_rate is None else pace.request_rate
    kind = "gamma"
    if pace.arrival == "fixed" or pace.burstiness == 1.0:
        kind = pace.arrival
    return arrival_times(
        rate, seed, kind=kind, burstiness=pace.burstiness, ramp_up_s=pace.ramp_up
    )


def _count(given: int | None, default: int, duration: float, pace: PaceOptions) -> int:
    """How many synthetic requests or sessions: those that may be due within --duration, where the
    number is not given."""
    if given is not None:
        return given
    if pace.request_rate is None or not math.isfinite(duration):
        return default
    expected = pace.request_rate * duration
    if not math.isfinite(expected) or expected > 5e6:
        raise LoadgenError(
            "--duration with such a rate gives too many requests; use --num-prompts or "
            "--num-sessions"
        )
    spread = max(1.0, 1 / math.sqrt(pace.burstiness))
    return math.ceil(expected + 6 * spread * math.sqrt(expected) + 10)


def _refuse_contradictions(workload: WorkloadOptions, pace: PaceOptions) -> None:
    if math.isfinite(workload.duration) and pace.closed_loop:
        raise LoadgenError(
            "--duration needs arrival times; a closed loop ends after --num-prompts"
        )
    if not math.isfinite(workload.scale_time) or not math.isfinite(pace.burstiness):
        raise LoadgenError("--scale-time and --burstiness must be finite")
    if (
        workload.dataset_name not in ("auto", "random")
        and workload.dataset_path is None
    ):
        raise LoadgenError(
            f"--dataset-name {workload.dataset_name} needs --dataset-path"
        )
    _refuse_beside_sessions(workload, pace)


def _refuse_beside_sessions(workload: WorkloadOptions, pace: PaceOptions) -> None:
    """What has no meaning with sessions, or none without."""
    if not workload.sessions:
        for name in ("num_sessions", "turns", "system_len", "pause_ms"):
            if getattr(workload, name) is not None:
                raise LoadgenError(
                    f"--{name.replace('_', '-')} needs --sessions chat or agent"
                )
        return
    for name in ("dataset_path", "workload", "num_prompts", "long_fraction"):
        if getattr(workload, name) is not None:
            raise LoadgenError(
                f"--sessions and --{name.replace('_', '-')} exclude each other"
            )
    if pace.request_rate is not None and pace.max_concurrency is not None:
        raise LoadgenError(
            "--sessions arrive at --request-rate or keep --max-concurrency of them under way, "
            "not both"
        )
