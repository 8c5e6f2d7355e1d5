"""From options to the list of requests that a run will send."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from loadgen.arrivals import arrival_times
from loadgen.errors import LoadgenError
from loadgen.options import Options
from loadgen.records import PlannedRequest
from loadgen.traces import TraceOptions, read_trace, trace_path
from loadgen.workload import synthetic, until, with_arrivals, within

DEFAULT_COUNT = 1000


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What will be sent. `dropped` requests did not fit in the model's context."""

    requests: list[PlannedRequest]
    closed_loop: bool
    dropped: int = 0

    @property
    def longest(self) -> int:
        return max(request.prompt_tokens + request.output_tokens for request in self.requests)

    @property
    def shortest_prompt(self) -> int:
        return min(request.prompt_tokens for request in self.requests)

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
        last = self.requests[-1].at
        if last and not self.closed_loop:
            text += f", sent over {last:.1f} s"
        return text + (f"; {self.dropped} too long ones left out" if self.dropped else "")


def build_plan(options: Options) -> Plan:
    """Raises LoadgenError for options that make no sense together, and for traces that cannot be
    read."""
    _check(options)
    if options.dataset_path is not None and options.dataset_name != "random":
        requests = read_trace(trace_path(options.dataset_path), trace_options(options))
        timed = (
            requests[0].at is not None and options.request_rate is None and not options.closed_loop
        )
    else:
        requests, timed = (
            synthetic(options.mix(), _count(options), options.seed, options.scales()),
            False,
        )
    closed = options.closed_loop and not timed
    if closed:
        requests = [msgspec.structs.replace(request, at=None) for request in requests]
    elif not timed:
        requests = with_arrivals(requests, _instants(options))
    requests = until(requests, options.duration)
    requests, dropped = within(requests, options.max_model_len)
    return Plan(requests=requests, closed_loop=closed, dropped=dropped)


def trace_options(options: Options) -> TraceOptions:
    """The part of the options that is about traces."""
    scale_input, scale_output = options.scales()
    if not 0 < options.scale_time < math.inf:
        raise LoadgenError("--scale-time must be above 0")
    return TraceOptions(
        format=options.dataset_name,
        limit=options.num_prompts,
        scale_input=scale_input,
        scale_output=scale_output,
        scale_time=options.scale_time,
        long_threshold=options.long_threshold,
        block_tokens=options.timed_trace_chunk_hash_size,
        seconds_per_unit=options.timed_trace_sec_multiplier,
    )


def _instants(options: Options) -> Iterator[float]:
    rate = math.inf if options.request_rate is None else options.request_rate
    kind = options.arrival if options.burstiness == 1.0 or options.arrival == "fixed" else "gamma"
    return arrival_times(
        rate, options.seed, kind=kind, burstiness=options.burstiness, ramp_up_s=options.ramp_up
    )


def _count(options: Options) -> int:
    """How many synthetic requests: those that may be due within --duration, where the number is not
    given."""
    if (
        options.num_prompts is not None
        or not math.isfinite(options.duration)
        or options.request_rate is None
    ):
        return DEFAULT_COUNT if options.num_prompts is None else options.num_prompts
    expected = options.request_rate * options.duration
    if not math.isfinite(expected) or expected > 5e6:
        raise LoadgenError("--duration with such a rate gives too many requests; use --num-prompts")
    spread = max(1.0, 1 / math.sqrt(options.burstiness))
    return math.ceil(expected + 6 * spread * math.sqrt(expected) + 10)


def _check(options: Options) -> None:
    if options.max_concurrency is not None and options.max_concurrency < 1:
        raise LoadgenError("--max-concurrency must be at least 1")
    if options.num_prompts is not None and options.num_prompts < 1:
        raise LoadgenError("--num-prompts must be at least 1")
    if options.duration <= 0 or options.ramp_up < 0 or options.probe_request_rate < 0:
        raise LoadgenError("--duration, --ramp-up and --probe-request-rate cannot be negative")
    if math.isfinite(options.duration) and options.closed_loop:
        raise LoadgenError("--duration needs arrival times; a closed loop ends after --num-prompts")
    if not 0 < options.attainment <= 1:
        raise LoadgenError("--attainment is a share between 0 and 1")
    if options.dataset_name not in ("auto", "random") and options.dataset_path is None:
        raise LoadgenError(f"--dataset-name {options.dataset_name} needs --dataset-path")
