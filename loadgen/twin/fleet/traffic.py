"""What a fleet is given: single requests and sessions side by side, at a rate that may change over
a day."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

import msgspec

from loadgen.records import PlannedRequest
from loadgen.workload.mixes import Mix, synthetic, with_arrivals
from loadgen.workload.sessions import SESSIONS, sessions
from loadgen.workload.sharing import with_known

# Single requests: most are chats or short tasks, one in twenty has a long document.
SINGLES = Mix(
    input_len="lognormal:600:1.1:16:8192",
    output_len="lognormal:100:0.7:4:800",
    long_fraction=0.05,
    long_input_len="lognormal:40000:0.6:16384:131072",
)
LONG_TOKENS = 16_384
_TURNS = 10.5  # of the mean session of SESSIONS
_PAUSES = 0.2  # of what SESSIONS says: a minute is to see whole sessions


class Rate(msgspec.Struct, frozen=True):
    """Requests per second: the mean, with a swing (0: none, 1: down to nothing at night) around it
    once in every `day_s`, lowest at the start."""

    mean: float
    swing: float = 0.0
    day_s: float = 86_400.0

    def at(self, instant: float) -> float:
        """At an instant."""
        return self.mean * (
            1 - self.swing * math.cos(2 * math.pi * instant / self.day_s)
        )

    def instants(self, seed: str) -> Iterator[float]:
        """Poisson arrivals: those of the highest rate, thinned."""
        draw = random.Random(seed)
        highest = self.mean * (1 + self.swing)
        at = 0.0
        while True:
            at += draw.expovariate(highest)
            if draw.random() * highest < self.at(at):
                yield at


def mixed(
    rate: Rate, duration_s: float, seed: int, in_sessions: float
) -> list[PlannedRequest]:
    """What arrives within `duration_s`; a share `in_sessions` of the requests are turns of chats
    and agents (which go on after it)."""
    alone = _scaled(rate, 1 - in_sessions)
    begun = _scaled(rate, in_sessions / _TURNS)
    planned: list[PlannedRequest] = []
    if in_sessions > 0:
        count = _count(begun, duration_s)
        drawn = sessions(
            list(SESSIONS.values()),
            count,
            seed,
            scale_time=_PAUSES,
            long_threshold=LONG_TOKENS,
        )
        arriving = with_arrivals(drawn, begun.instants(f"{seed}/begun"))
        planned += with_known(_begun_within(arriving, duration_s))
    if in_sessions < 1:
        singles = synthetic(SINGLES, _count(alone, duration_s), seed)
        arriving = with_arrivals(singles, alone.instants(f"{seed}/alone"))
        planned += renumbered(
            [one for one in arriving if (one.at or 0.0) <= duration_s], len(planned)
        )
    return planned


def renumbered(requests: Sequence[PlannedRequest], first: int) -> list[PlannedRequest]:
    """Single requests with indexes from `first` on."""
    return [
        msgspec.structs.replace(request, index=first + number)
        for number, request in enumerate(requests)
    ]


def _scaled(rate: Rate, share: float) -> Rate:
    return msgspec.structs.replace(rate, mean=rate.mean * share)


def _count(rate: Rate, duration_s: float) -> int:
    """More than will come."""
    expected = rate.mean * (1 + rate.swing) * duration_s
    return math.ceil(expected + 6 * math.sqrt(expected) + 10)


def _begun_within(
    requests: Sequence[PlannedRequest], duration_s: float
) -> list[PlannedRequest]:
    """All turns of the sessions that begin in time; the first ones come first."""
    kept: set[int] = set()
    for request in requests:
        begins = request.after is None and (request.at or 0.0) <= duration_s
        if begins or request.after in kept:
            kept.add(request.index)
    within = [request for request in requests if request.index in kept]
    new = {request.index: number for number, request in enumerate(within)}
    return [
        msgspec.structs.replace(
            request,
            index=new[request.index],
            after=None if request.after is None else new[request.after],
        )
        for request in within
    ]
