"""A load that suits the server it finds, where the user has not said what to send.

Prompts take a quarter of a second on the idle server and answers half a second: powers of two, at
most 1,024 and 128 tokens, within the model's context. Long prompts nearly fill the context, or take
half a minute. On average one request is under way, for about a minute.
"""

from __future__ import annotations

import math
import random

import msgspec

from loadgen.workload.lengths import parse_lengths
from loadgen.workload.mixes import synthetic
from loadgen.workload.options import PaceOptions, WorkloadOptions

USUAL_CONTEXT = 2048  # of a server that does not tell
PROMPT_S = 0.25
ANSWER_S = 0.5
LONG_PROMPT_S = 30.0
RUN_S = 60.0
LEAST_PROMPT = 16  # beside what the server adds
MOST_PROMPT = 1024
LEAST_ANSWER = 8
MOST_ANSWER = 128
FEWEST_REQUESTS = 20
MOST_REQUESTS = 1000
_SAMPLE = 200  # requests, to know the mean of a mix


class ServerFound(msgspec.Struct, frozen=True, kw_only=True):
    """What a load has to suit: the speeds are those of one request alone."""

    context: int
    overhead: int = 0  # tokens that the server adds to every prompt
    prompt_tokens_per_s: float
    token_s: float  # from one token of an answer to the next

    def seconds(self, prompt_tokens: float, output_tokens: float) -> float:
        """How long a request takes alone."""
        return prompt_tokens / self.prompt_tokens_per_s + output_tokens * self.token_s


class LeftOpen(msgspec.Struct, frozen=True, kw_only=True):
    """What the user has not said."""

    prompts: bool = False
    long_prompts: bool = False
    answers: bool = False
    pace: bool = False

    @property
    def lengths(self) -> bool:
        return self.prompts or self.long_prompts or self.answers

    @property
    def anything(self) -> bool:
        return self.lengths or self.pace


def left_open(workload: WorkloadOptions, pace: PaceOptions) -> LeftOpen:
    """Traces and sessions leave nothing open, a known mix the pace at most; and that only where
    neither a rate, a concurrency nor a number of requests is given."""
    trace = workload.dataset_path is not None and workload.dataset_name != "random"
    if trace or workload.sessions:
        return LeftOpen()
    drawn = workload.workload is None
    paced = (pace.request_rate, pace.max_concurrency, workload.num_prompts)
    return LeftOpen(
        prompts=drawn and workload.input_len is None,
        long_prompts=drawn
        and bool(workload.long_fraction)
        and workload.long_input_len is None,
        answers=drawn and workload.output_len is None,
        pace=all(value is None for value in paced),
    )


def suit(
    workload: WorkloadOptions, pace: PaceOptions, found: ServerFound
) -> tuple[WorkloadOptions, PaceOptions, dict[str, str]]:
    """The options with what was left open, and those that were chosen, by flag."""
    open_ones = left_open(workload, pace)
    if workload.max_model_len is not None:
        context = min(found.context, workload.max_model_len)
        found = msgspec.structs.replace(found, context=context)
    chosen: dict[str, str] = {}
    if open_ones.answers:
        chosen["output_len"] = str(_answer(workload, found))
    workload = msgspec.structs.replace(workload, **chosen)
    if open_ones.prompts:
        chosen["input_len"] = str(_prompt(workload, found))
    if open_ones.long_prompts:
        chosen["long_input_len"] = _long_prompts(workload, found)
    workload = msgspec.structs.replace(workload, **chosen)
    if open_ones.pace:
        rate = _rate(workload, found)
        chosen["request_rate"] = f"{rate:g}"
        pace = msgspec.structs.replace(pace, request_rate=rate)
        if math.isinf(workload.duration):
            count = min(max(round(RUN_S * rate), FEWEST_REQUESTS), MOST_REQUESTS)
            chosen["num_prompts"] = str(count)
            workload = msgspec.structs.replace(workload, num_prompts=count)
    flags = {f"--{name.replace('_', '-')}": value for name, value in chosen.items()}
    return workload, pace, flags


def _answer(workload: WorkloadOptions, found: ServerFound) -> int:
    room = found.context // 4
    long_prompts = workload.long_input_len if workload.long_fraction else None
    for lengths in (workload.input_len, long_prompts):
        if lengths is not None:
            room = min(room, found.context - _longest(lengths))
    tokens = _power_of_two(min(MOST_ANSWER, ANSWER_S / found.token_s))
    return max(1, min(max(LEAST_ANSWER, tokens), room))


def _prompt(workload: WorkloadOptions, found: ServerFound) -> int:
    """`workload` has its answers."""
    assert workload.output_len is not None
    room = min(found.context // 2, found.context - _longest(workload.output_len))
    tokens = _power_of_two(
        min(MOST_PROMPT, PROMPT_S * found.prompt_tokens_per_s, max(1, room))
    )
    return max(tokens, found.overhead + LEAST_PROMPT)


def _long_prompts(workload: WorkloadOptions, found: ServerFound) -> str:
    """`workload` has its answers."""
    answers = workload.long_output_len or workload.output_len
    assert answers is not None
    room = 0.95 * found.context - _longest(answers)
    most = _two_digits(min(room, LONG_PROMPT_S * found.prompt_tokens_per_s))
    least = found.overhead + LEAST_PROMPT
    return f"{max(least, round(0.8 * most))}:{max(least, round(most))}"


def _rate(workload: WorkloadOptions, found: ServerFound) -> float:
    requests = synthetic(workload.mix(), _SAMPLE, workload.seed, workload.scales())
    prompts = sum(request.prompt_tokens for request in requests)
    outputs = sum(request.output_tokens for request in requests)
    return _two_digits(_SAMPLE / found.seconds(prompts, outputs))


def _longest(lengths: str) -> int:
    """As far as a sample tells."""
    draw = parse_lengths(lengths)
    rng = random.Random(0)
    return max(draw(rng, index / _SAMPLE) for index in range(_SAMPLE + 1))


def _power_of_two(number: float) -> int:
    """The largest that is not above it."""
    return 1 << (max(1, int(number)).bit_length() - 1)


def _two_digits(number: float) -> float:
    """Two digits that count, rounded down: the same flags for servers that are about alike."""
    if number <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(number)) - 1)
    return float(f"{math.floor(number / unit) * unit:.2g}")
