"""Distributions of prompt and answer lengths, written as one word on the command line.

128                        always 128
64:512, uniform:64:512     every length equally likely
lognormal:100:0.8[:1:512]  median, sigma of the logarithm, bounds
zipf:64:8192[:1.2]         P(length) falls with its rank; theta, 1 if left out
stair:64:8192:8            eight equal parts of the run, climbing
"""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections.abc import Callable, Sequence
from itertools import accumulate

from loadgen.errors import LoadgenError

# (randomness, position in the run 0..1) -> tokens
Draw = Callable[[random.Random, float], int]


def parse_lengths(text: str) -> Draw:
    """The distribution that `text` names; raises LoadgenError for anything that is not one."""
    name, *arguments = text.split(":") if not text[:1].isdigit() else _unnamed(text)
    try:
        numbers = [float(argument) for argument in arguments]
        if any(not math.isfinite(number) or number < 0 for number in numbers):
            raise ValueError
        return _MAKERS[name](*numbers)
    except (KeyError, TypeError, ValueError):
        known = "128, 64:512, lognormal:MEDIAN:SIGMA[:LO:HI], zipf:LO:HI[:THETA]"
        raise LoadgenError(
            f"'{text}' is no length: use {known} or stair:LO:HI:STEPS"
        ) from None


def _unnamed(text: str) -> list[str]:
    return ["uniform" if ":" in text else "fixed", *text.split(":")]


def _fixed(tokens: float) -> Draw:
    length = _at_least_one(tokens)
    return lambda rng, position: length


def _uniform(low: float, high: float) -> Draw:
    first, last = _ordered(low, high)
    return lambda rng, position: rng.randint(first, last)


def _lognormal(
    median: float, sigma: float, low: float = 1, high: float = 2**30
) -> Draw:
    """Draws outside the bounds are drawn again, so that the bounds collect no mass."""
    mu = math.log(_at_least_one(median))
    first, last = _ordered(low, high)

    def draw(rng: random.Random, position: float) -> int:
        for _ in range(1000):
            length = round(rng.lognormvariate(mu, sigma))
            if first <= length <= last:
                return length
        return min(max(round(median), first), last)

    return draw


def _zipf(low: float, high: float, theta: float = 1.0) -> Draw:
    first, last = _ordered(low, high)
    if last - first > 2**22:
        raise ValueError("too many ranks")
    cumulative = list(accumulate(rank**-theta for rank in range(1, last - first + 2)))
    return lambda rng, position: (
        first + bisect(cumulative, rng.random() * cumulative[-1])
    )


def _stair(low: float, high: float, steps: float) -> Draw:
    first, last = _ordered(low, high)
    count = int(steps)
    if count < 2:
        raise ValueError("a stair has two steps")
    heights = [
        round(first + (last - first) * step / (count - 1)) for step in range(count)
    ]
    return lambda rng, position: heights[min(int(position * count), count - 1)]


def _at_least_one(tokens: float) -> int:
    if tokens < 1:
        raise ValueError("a length is at least one token")
    return round(tokens)


def _ordered(low: float, high: float) -> tuple[int, int]:
    if low > high:
        raise ValueError("bounds the wrong way round")
    return _at_least_one(low), _at_least_one(high)


_MAKERS: dict[str, Callable[..., Draw]] = {
    "fixed": _fixed,
    "uniform": _uniform,
    "lognormal": _lognormal,
    "zipf": _zipf,
    "stair": _stair,
}


def scaled(tokens: int, factor: float) -> int:
    """A length times a factor, never less than one token."""
    return max(1, round(tokens * factor))


def span(lengths: Sequence[int]) -> tuple[int, int]:
    """Shortest and longest."""
    return min(lengths), max(lengths)
