"""What a good answer is: objectives for the time to first token (ttft), per output token (tpot) and
end to end (e2el).

Written as in vLLM, in milliseconds: `ttft:500 tpot:50`. An objective may be relative to the
prediction for an idle server, `ttft:1.5x`, or the larger of the two, `ttft:1.5x,500`, which is how
the server itself sets its deadlines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from loadgen.errors import LoadgenError
from loadgen.records import LONG, RequestRecord

METRICS = ("ttft", "tpot", "e2el")


class Bound(msgspec.Struct, frozen=True):
    """At most so many seconds, or so many times the isolated time to first token: the larger, where
    both are given."""

    seconds: float | None = None
    times_isolated: float | None = None

    def resolve(self, isolated_s: float | None) -> float | None:
        """The bound in seconds; None if it is relative and there is no prediction."""
        if self.times_isolated is None:
            return self.seconds
        if isolated_s is None:
            return None
        return max(self.times_isolated * isolated_s, self.seconds or 0.0)


class Objectives(msgspec.Struct, frozen=True):
    """Bounds by metric; long requests may have their own."""

    default: Mapping[str, Bound] = msgspec.field(default_factory=dict)
    long: Mapping[str, Bound] = msgspec.field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.default or self.long)

    @property
    def relative(self) -> bool:
        """Whether a prediction of the isolated time to first token is needed."""
        bounds = [*self.default.values(), *self.long.values()]
        return any(bound.times_isolated for bound in bounds)

    def limits(self, record: RequestRecord) -> dict[str, float]:
        """The seconds that each objective allows this request."""
        bounds = {**self.default, **self.long} if record.kind == LONG else self.default
        limits = {}
        for metric, bound in bounds.items():
            seconds = bound.resolve(record.isolated_ttft_s)
            if seconds is not None:
                limits[metric] = seconds
        return limits


def parse_objectives(default: Sequence[str], long: Sequence[str] = ()) -> Objectives:
    """From the words of --goodput and --goodput-long; raises LoadgenError."""
    return Objectives(dict(map(_parse, default)), dict(map(_parse, long)))


def _parse(word: str) -> tuple[str, Bound]:
    metric, _, value = word.partition(":")
    try:
        if metric not in METRICS:
            raise ValueError
        seconds = times = None
        for part in value.split(","):
            number = float(part.removesuffix("x"))
            if not 0 < number < float("inf"):
                raise ValueError
            if part.endswith("x"):
                times = number
            else:
                seconds = number / 1000
        return metric, Bound(seconds, times)
    except ValueError:
        raise LoadgenError(
            f"--goodput {word}: write ttft:MS, tpot:MS, e2el:MS, ttft:1.5x or ttft:1.5x,MS"
        ) from None


def objective_headers(objectives: Objectives, record: RequestRecord) -> dict[str, str]:
    """llm-d's headers, which tell the server what is asked of it."""
    limits = objectives.limits(record)
    names = {"ttft": "x-llm-d-slo-ttft-ms", "tpot": "x-llm-d-slo-tpot-ms"}
    return {
        header: f"{1000 * limits[metric]:.0f}"
        for metric, header in names.items()
        if metric in limits
    }


def deadlines(
    arrivals: Sequence[float], ttft_s: float, tbt_s: float
) -> tuple[int, int]:
    """(missed, all) deadlines of a token stream, as Etalon counts them (arXiv 2407.07000).

    `arrivals` are the seconds from the request to each token. The first token is due after
    `ttft_s`, every other one `tbt_s` after the one before; a token that is early leaves its slack
    to the next ones, and a stall misses one deadline for every `tbt_s` it lasts. After a miss the
    deadlines start anew.
    """
    total = missed = 0
    slack = before = 0.0
    for index, instant in enumerate(arrivals):
        gap = instant - before
        before = instant
        allowed = ttft_s if index == 0 else tbt_s
        if gap <= allowed + slack:
            slack += allowed - gap
            total += 1
            continue
        late = int((gap - slack) // tbt_s)
        if index == 0:
            late = int(1 + (gap - slack - ttft_s) // tbt_s)
        missed += late
        total += late
        slack = 0.0
    return missed, total
