"""How long a prompt takes on the idle server: the denominator of the normalised time to first
token.

Measured before the load, one request at a time, at lengths spread over those of the workload, and
interpolated between them on logarithmic axes. The points are kept with the results, so that other
runs can share them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from loadgen.errors import LoadgenError
from loadgen.records import Ask, PlannedRequest, RequestRecord

Points = list[tuple[int, float]]
_POINTS = 7
_REPEAT_UNTIL_S = 1.0  # quick lengths are measured three times, and the least counts


class _File(msgspec.Struct):
    points: Points


def lengths_to_measure(lengths: Sequence[int], count: int = _POINTS) -> list[int]:
    """At most `count` lengths from the shortest to the longest, evenly spaced on a logarithmic
    axis."""
    low = min(lengths)
    high = max(lengths)
    return sorted(
        {round(low * (high / low) ** (step / (count - 1))) for step in range(count)}
    )


async def measure_isolated(lengths: Sequence[int], ask: Ask) -> Points:
    """Seconds to the first token at these lengths; `ask` sends one request and waits for its
    end."""
    points: Points = []
    index = 0
    for length in lengths:
        best = math.inf
        for _ in range(3):
            request = PlannedRequest(
                index=index, prompt_tokens=length, output_tokens=1, kind="isolated"
            )
            record = await ask(request)
            index += 1
            best = min(best, _ttft(record, length))
            if best > _REPEAT_UNTIL_S:
                break
        points.append((length, best))
    return monotone(points)


def _ttft(record: RequestRecord, length: int) -> float:
    """Of an answer of one token, which may have no text of its own: then its end tells when it
    came."""
    first = record.token_times[0] if len(record.token_times) else record.ended_at
    if (
        not record.completed
        or record.sent_at is None
        or first is None
        or not record.generated_tokens
    ):
        reason = record.error or "no token came"
        raise LoadgenError(
            f"measuring the idle server at {length} prompt tokens: {reason}"
        )
    return first - record.sent_at


def monotone(points: Points) -> Points:
    """A shorter prompt takes no longer than a longer one: where it was measured so, that was
    noise."""
    least = math.inf
    smoothed = []
    for length, seconds in reversed(points):
        least = min(least, seconds)
        smoothed.append((length, least))
    return smoothed[::-1]


def read_points(path: Path) -> Points:
    """Points of an earlier run: its directory, or its isolated_ttft.json."""
    file = path / "isolated_ttft.json" if path.is_dir() else path
    try:
        points = msgspec.json.decode(file.read_bytes(), type=_File).points
    except OSError as error:
        raise LoadgenError(
            f"--isolated-ttft: cannot read {file}: {error.strerror}"
        ) from None
    except msgspec.DecodeError as error:
        raise LoadgenError(f"--isolated-ttft: {file}: {error}") from None
    if not points or any(length < 1 or not seconds > 0 for length, seconds in points):
        raise LoadgenError(f"--isolated-ttft: {file} holds no usable points")
    return sorted(points)


def predict(points: Points, length: int) -> float:
    """Seconds to the first token of a prompt; beyond the last point the last slope goes on."""
    if len(points) == 1:
        return points[0][1]
    x = np.log([point[0] for point in points])
    y = np.log([point[1] for point in points])
    at = math.log(length)
    if at > x[-1]:
        slope = max(0.0, (y[-1] - y[-2]) / (x[-1] - x[-2]))
        return math.exp(y[-1] + slope * (at - x[-1]))
    return math.exp(np.interp(at, x, y))
