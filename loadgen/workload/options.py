"""What is sent, and when."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec

from loadgen.errors import LoadgenError
from loadgen.flags import flag
from loadgen.workload.mixes import PRESETS, Mix
from loadgen.workload.sessions import SESSIONS, SessionMix
from loadgen.workload.traces import FORMATS, TIMED_TRACE_BLOCK

DEFAULT_COUNT = 1000
SEARCHED_COUNT = 100  # of every rate that `capacity` tries
DEFAULT_SESSIONS = 100
_PLAIN = Mix()


class WorkloadOptions(msgspec.Struct, kw_only=True, frozen=True):
    """Which requests are sent: their number and lengths, drawn or from a trace."""

    workload: Annotated[
        str | None, flag("lengths of a known mix", choices=tuple(PRESETS))
    ] = None
    dataset_name: Annotated[
        str, flag("format of the trace", choices=("auto", "random", *FORMATS))
    ] = "auto"
    dataset_path: Annotated[
        str | None,
        flag("trace to replay; also sample:mooncake, sample:azure", metavar="FILE"),
    ] = None
    sessions: Annotated[
        tuple[str, ...],
        flag(
            "conversations instead of single requests, of one kind or of several",
            choices=tuple(SESSIONS),
        ),
    ] = ()
    num_sessions: Annotated[
        int | None, flag("of them", shown=f"{DEFAULT_SESSIONS}", ge=1)
    ] = None
    turns: Annotated[
        str | None, flag("requests of a session", shown="by kind", metavar="LENGTHS")
    ] = None
    system_len: Annotated[
        int | None,
        flag("tokens that sessions of a kind begin with", shown="by kind", ge=0),
    ] = None
    pause_ms: Annotated[
        str | None,
        flag(
            "from an answer to the next turn, or 0", shown="by kind", metavar="LENGTHS"
        ),
    ] = None
    num_prompts: Annotated[
        int | None,
        flag(
            "requests",
            shown=f"{DEFAULT_COUNT}; without a pace: about a minute's; capacity: "
            f"{SEARCHED_COUNT} a rate; of a trace: all",
            ge=1,
        ),
    ] = None
    duration: Annotated[float, flag("send for so many seconds", gt=0)] = math.inf
    input_len: Annotated[
        str | None,
        flag(
            "prompt lengths",
            shown=f"suits the server; simulated: {_PLAIN.input_len}",
            aliases=("--random-input-len",),
            metavar="LENGTHS",
        ),
    ] = None
    output_len: Annotated[
        str | None,
        flag(
            "answer lengths",
            shown=f"suits the server; simulated: {_PLAIN.output_len}",
            aliases=("--random-output-len",),
            metavar="LENGTHS",
        ),
    ] = None
    long_fraction: Annotated[
        float | None,
        flag("share of long requests", shown=f"{_PLAIN.long_fraction:g}", ge=0, le=1),
    ] = None
    long_input_len: Annotated[
        str | None,
        flag(
            "their prompt lengths",
            shown=f"suits the server; simulated: {_PLAIN.long_input_len}",
            metavar="LENGTHS",
        ),
    ] = None
    long_output_len: Annotated[
        str | None,
        flag("their answer lengths", shown="as --output-len", metavar="LENGTHS"),
    ] = None
    long_threshold: Annotated[int, flag("longer prompts of a trace are long", ge=0)] = (
        8192
    )
    scale_lengths: Annotated[
        str, flag("multiply prompt (and answer) lengths", metavar="F[:F]")
    ] = "1"
    scale_time: Annotated[
        float, flag("multiply the times of a trace; 2 is half as fast", gt=0)
    ] = 1.0
    max_model_len: Annotated[
        int | None, flag("leave out requests with more tokens", ge=1)
    ] = None
    timed_trace_chunk_hash_size: Annotated[
        int | None,
        flag("tokens of a block of a timed_trace", shown=str(TIMED_TRACE_BLOCK), ge=1),
    ] = None
    timed_trace_sec_multiplier: Annotated[
        float | None, flag("seconds of its unit of time", shown="1", gt=0)
    ] = None
    seed: Annotated[int, flag("same seed, same requests at the same times")] = 0

    def mix(self) -> Mix:
        """Lengths of a synthetic workload: the preset's, with whatever was given beside it."""
        if self.workload is not None and self.workload not in PRESETS:
            raise LoadgenError(
                f"--workload {self.workload}: known are {', '.join(PRESETS)}"
            )
        base = PRESETS[self.workload] if self.workload else _PLAIN
        given = {}
        for name in Mix.__struct_fields__:
            value = getattr(self, name)
            if value is not None:
                given[name] = value
        return msgspec.structs.replace(base, **given)

    def session_mixes(self) -> list[SessionMix]:
        """The kinds of sessions, with whatever was given beside them: --input-len is every
        message's."""
        given: dict[str, str | int] = {}
        for name in ("turns", "system_len", "pause_ms", "output_len"):
            value = getattr(self, name)
            if value is not None:
                given[name] = value
        if self.input_len is not None:
            given |= {"first_len": self.input_len, "message_len": self.input_len}
        return [
            msgspec.structs.replace(SESSIONS[name], **given) for name in self.sessions
        ]

    def scales(self) -> tuple[float, float]:
        """Factors for prompt and answer lengths."""
        try:
            factors = [float(part) for part in self.scale_lengths.split(":")]
            if len(factors) > 2 or any(not 0 < factor < math.inf for factor in factors):
                raise ValueError
        except ValueError:
            raise LoadgenError(
                f"--scale-lengths {self.scale_lengths}: write FACTOR or PROMPTS:ANSWERS"
            ) from None
        return factors[0], factors[-1]


class PaceOptions(msgspec.Struct, kw_only=True, frozen=True):
    """When requests are sent, and what is sent beside them. Times in seconds."""

    request_rate: Annotated[
        float | None,
        flag(
            "requests (or sessions) per second, inf: all at once",
            shown="suits the server; with a number of requests: inf; a trace: its own",
            gt=0,
        ),
    ] = None
    burstiness: Annotated[float, flag("shape of gamma arrivals; 1: Poisson", gt=0)] = (
        1.0
    )
    arrival: Annotated[
        Literal["poisson", "fixed"], flag("fixed: at even intervals")
    ] = "poisson"
    max_concurrency: Annotated[
        int | None, flag("requests (or sessions) under way at most", ge=1)
    ] = None
    ramp_up: Annotated[
        float, flag("seconds until the full rate or concurrency", ge=0)
    ] = 0.0
    probe_request_rate: Annotated[
        float, flag("1-token requests/s beside the load", ge=0)
    ] = 0.0
    probe_input_len: Annotated[int, flag("their prompt tokens", ge=1)] = 32
    num_warmups: Annotated[int, flag("requests sent before, one by one", ge=0)] = 0

    @property
    def closed_loop(self) -> bool:
        """As in vLLM: a concurrency without a rate. A trace with times of its own is never a closed
        loop."""
        return self.max_concurrency is not None and self.request_rate is None
