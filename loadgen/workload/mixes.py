"""Which requests a run sends: synthetic mixes of short and long ones.

Every request draws its lengths from randomness of its own (seed and index), and "long or short"
from one number per request. So a run with 5% long requests is the run with 1%, with a few more
short ones turned long: same arrivals, same other requests.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator

import msgspec

from loadgen.errors import LoadgenError
from loadgen.records import LONG, PROBE, SHORT, PlannedRequest
from loadgen.workload.arrivals import arrival_times
from loadgen.workload.lengths import parse_lengths, scaled


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths of short and long requests, in the words of `loadgen.workload.lengths`."""

    input_len: str = "1024"
    output_len: str = "128"
    long_fraction: float = 0.0
    long_input_len: str = "6000:7500"
    long_output_len: str | None = None  # None: as the short ones'


# Presets of --workload. `paper` has the paper's lengths: short requests of chats (at
# most 8K tokens), long prompts with P50 393K and P90 839K, their answers with P50 518
# and P90 808 (sigma = ln(P90 / P50) / 1.2816). Fit it to a machine with
# --scale-lengths. `convoy` is the same idea for a small model with a context of 8K.
PRESETS = {
    "paper": Mix(
        input_len="lognormal:250:1.3:4:8192",
        output_len="lognormal:180:0.9:1:2048",
        long_fraction=0.05,
        long_input_len="lognormal:393000:0.592:128000:1048576",
        long_output_len="lognormal:518:0.347:1:4096",
    ),
    "convoy": Mix(
        input_len="lognormal:100:0.8:8:512",
        output_len="16:64",
        long_fraction=0.05,
        long_input_len="6000:7500",
    ),
}


def synthetic(
    mix: Mix, count: int, seed: int, scale: tuple[float, float] = (1.0, 1.0)
) -> list[PlannedRequest]:
    """`count` requests without arrival times; `scale` multiplies prompt and answer lengths."""
    if count < 1:
        raise LoadgenError("--num-prompts must be at least 1")
    if not 0 <= mix.long_fraction <= 1:
        raise LoadgenError("--long-fraction must lie between 0 and 1")
    lengths = {
        SHORT: (parse_lengths(mix.input_len), parse_lengths(mix.output_len)),
        LONG: (
            parse_lengths(mix.long_input_len),
            parse_lengths(mix.long_output_len or mix.output_len),
        ),
    }
    choice = random.Random(f"{seed}/long")
    requests = []
    for index in range(count):
        kind = LONG if choice.random() < mix.long_fraction else SHORT
        rng = random.Random(f"{seed}/lengths/{kind}/{index}")
        position = index / count
        draw_prompt, draw_output = lengths[kind]
        prompt = draw_prompt(rng, position)
        output = draw_output(rng, position)
        requests.append(
            PlannedRequest(
                index=index,
                prompt_tokens=scaled(prompt, scale[0]),
                output_tokens=scaled(output, scale[1]),
                kind=kind,
            )
        )
    return requests


def with_arrivals(
    requests: Iterable[PlannedRequest], instants: Iterator[float]
) -> list[PlannedRequest]:
    """The same requests, due at these instants; a turn of a session is due after the one before."""
    return [
        msgspec.structs.replace(request, at=next(instants))
        if request.after is None
        else request
        for request in requests
    ]


def probes(rate: float, prompt_tokens: int, seed: int) -> Iterator[PlannedRequest]:
    """Endless 1-token requests at even intervals: what a request that needs nothing has to wait."""
    instants = arrival_times(rate, seed, kind="fixed")
    for index, at in enumerate(instants):
        yield PlannedRequest(
            index=index, at=at, prompt_tokens=prompt_tokens, output_tokens=1, kind=PROBE
        )


def within(
    requests: list[PlannedRequest], max_model_len: int | None
) -> tuple[list[PlannedRequest], int]:
    """Requests that fit the model's context, and how many did not."""
    if max_model_len is None:
        return requests, 0
    kept = [
        request
        for request in requests
        if request.prompt_tokens + request.output_tokens <= max_model_len
    ]
    if not kept:
        raise LoadgenError(
            f"no request fits in {max_model_len} tokens; use --scale-lengths"
        )
    return kept, len(requests) - len(kept)


def until(requests: list[PlannedRequest], seconds: float) -> list[PlannedRequest]:
    """Requests due in the first `seconds`."""
    if math.isinf(seconds):
        return requests
    kept = [
        request for request in requests if request.at is None or request.at <= seconds
    ]
    if all(request.after is not None for request in kept):
        raise LoadgenError(
            f"no request is due within {seconds:g} s; raise --duration or --request-rate"
        )
    return kept
