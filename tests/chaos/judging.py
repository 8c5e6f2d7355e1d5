"""Judging what clients saw of a death. Pure: streams and probes in, figures out."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from statistics import median

import msgspec


class Stream(msgspec.Struct):
    """One answer as its client got it. `moments`: when each piece of text came, in seconds."""

    name: str
    text: str = ""
    moments: list[float] = []
    tokens: int | None = None  # as the server counted them
    finish_reason: str | None = None
    error: str | None = None
    resumed: int = 0  # times that the client went on over a new connection

    @property
    def ended(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def longest_pause_s(self) -> float | None:
        """Between two pieces of text; None where there were not two."""
        gaps = [later - earlier for earlier, later in itertools.pairwise(self.moments)]
        return max(gaps, default=None)


class Probe(msgspec.Struct, frozen=True):
    """One small request over a connection of its own."""

    sent_at: float
    ended_at: float
    error: str | None = None


class Goal(msgspec.Struct, frozen=True):
    """What a death may cost. None: nothing is promised."""

    whole: int  # streams that end as if nothing had happened
    back_s: float | None = None  # until every new request is answered again
    pause_s: float | None = None  # between two tokens of any stream
    # of the streams that did not pass through the dead one
    neighbour_pause_s: float | None = None


class Seen(msgspec.Struct, frozen=True):
    """What one death cost, as the clients saw it."""

    streams: int
    whole: int
    cut: int  # ended with an error, or went on over a new connection
    at_risk: int  # at most so many passed through the dead one
    pause_median_s: float | None  # of the streams that did not end with an error
    pause_max_s: float | None
    neighbour_pause_s: float | None
    back_s: float | None
    failed_probes: int
    errors: tuple[str, ...] = ()


def is_whole(stream: Stream, reference: Stream) -> bool:
    """The same tokens, and the same end, as undisturbed: none lost, none doubled."""
    facts = (stream.text, stream.tokens, stream.finish_reason, stream.error)
    return facts == (reference.text, reference.tokens, reference.finish_reason, None)


def back_after_s(probes: Sequence[Probe], killed_at: float) -> float | None:
    """Seconds from the kill until a new request was answered, with no failure sent after it.

    None if the last probe failed, or none was sent after the kill."""
    after = sorted(
        [probe for probe in probes if probe.sent_at >= killed_at],
        key=lambda probe: probe.sent_at,
    )
    steady: list[Probe] = []
    for probe in after:
        if probe.error is None:
            steady.append(probe)
        else:
            steady.clear()
    return min([probe.ended_at for probe in steady]) - killed_at if steady else None


def most_of_one(held: Sequence[int], streams: int) -> int:
    """How many of the streams one replica may hold, of which some have told how many they hold:
    those of which nobody has told may all be at another one."""
    untold = streams - sum(held)
    return min(streams, max([*held, untold]))


def judge(
    streams: Sequence[Stream],
    references: Mapping[str, Stream],
    probes: Sequence[Probe],
    killed_at: float,
    at_risk: int | None = None,
) -> Seen:
    """All figures of one death. `references`: the undisturbed answers, by the streams' names.

    `at_risk`: how many streams at most passed through the dead one; None: all."""
    survivors = [stream for stream in streams if stream.error is None]
    cut = [stream for stream in streams if stream.error is not None or stream.resumed]
    pauses = _pauses(survivors)
    neighbour_pauses = _pauses([stream for stream in survivors if not stream.resumed])
    return Seen(
        streams=len(streams),
        whole=sum([is_whole(stream, references[stream.name]) for stream in streams]),
        cut=len(cut),
        at_risk=len(streams) if at_risk is None else at_risk,
        pause_median_s=median(pauses) if pauses else None,
        pause_max_s=max(pauses, default=None),
        neighbour_pause_s=max(neighbour_pauses, default=None),
        back_s=back_after_s(probes, killed_at),
        failed_probes=sum([probe.error is not None for probe in probes]),
        errors=tuple(
            sorted({stream.error for stream in streams if stream.error is not None})
        ),
    )


def _pauses(streams: Sequence[Stream]) -> list[float]:
    """The longest of each stream that had one."""
    pauses = [stream.longest_pause_s for stream in streams]
    return [pause for pause in pauses if pause is not None]


def missed(goal: Goal, seen: Seen) -> list[str]:
    """The goals that were not reached, in words."""
    short: list[str] = []
    if seen.whole < goal.whole:
        short.append(f"{seen.whole} of {goal.whole} streams whole")
    if seen.cut > seen.at_risk:
        short.append(
            f"{seen.cut} streams cut, {seen.at_risk} passed through the dead one"
        )
    for what, value, limit in (
        ("back after", seen.back_s, goal.back_s),
        ("longest pause", seen.pause_max_s, goal.pause_s),
        (
            "the neighbours' longest pause",
            seen.neighbour_pause_s,
            goal.neighbour_pause_s,
        ),
    ):
        if limit is not None and value is not None and value >= limit:
            short.append(f"{what} {value:.1f} s, not under {limit:g} s")
    if goal.back_s is not None and seen.back_s is None:
        short.append("service did not come back")
    return short
