"""What a grid tells the routers of itself, and the short names of pages in it."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence

import msgspec

from medha_actors.core.page_keys import PageKey

# of a page's key; of a million pages, two are confused once in 10^7 fleets
NAME_BYTES = 8

Points = tuple[tuple[float, float], ...]  # increasing in the first number


class Notice(msgspec.Struct, frozen=True, tag="notice", array_like=True, kw_only=True):
    """A grid at one instant. Times are in seconds, and there are no instants in it: whoever hears
    it may have another clock."""

    serial: int  # one more than that of the notice before
    whole: bool  # `came` are all pages there are, not those since the notice before
    max_tokens: int  # the longest sequence that fits the model and the KV cache
    page_tokens: int
    room_tokens: int  # of KV that nobody uses or has been promised
    slots: int  # prefills that may begin before another request has ended
    live: int  # requests
    costs: Points  # prompt tokens, seconds of their prefill alone
    # seconds of work, by how many its first token comes later than in an idle grid, if it comes now
    waits: Points
    pace: float  # share of the time that decodes leave to prefills, above 0
    load: float  # share of the time that is filled, of the last seconds
    queued: int  # requests whose prefill is not through
    late: int  # those of them whose first token is predicted to be late
    late_s: float  # their work
    draining: bool
    came: bytes  # names of pages that can be found
    gone: bytes  # and of those that cannot be found any more
    # the same as `waits` for some tenants that have requests waiting; `waits` is for others
    tenants: tuple[tuple[str, Points], ...] = ()


def pack_names(keys: Iterable[PageKey]) -> bytes:
    """Names, side by side."""
    return b"".join([key[:NAME_BYTES] for key in keys])


def unpack_names(packed: bytes) -> array[int]:
    """Names as numbers."""
    names = array("Q")
    names.frombytes(packed)
    return names


def between(points: Sequence[tuple[float, float]], x: float) -> float:
    """The line through the points, level beyond its ends; 0 if there are none."""
    if not points:
        return 0.0
    index = bisect_right(points, (x, float("inf")))
    if index == 0:
        return points[0][1]
    if index == len(points):
        return points[-1][1]
    low, low_y = points[index - 1]
    high, high_y = points[index]
    return low_y + (high_y - low_y) * (x - low) / (high - low)
