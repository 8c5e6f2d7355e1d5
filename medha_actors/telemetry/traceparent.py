"""W3C trace context (https://www.w3.org/TR/trace-context/): the header `traceparent`, in and out,
and sampling."""

from __future__ import annotations

import random
import re
from typing import NamedTuple

_PATTERN = re.compile(
    r"^(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?$"
)
_random = random.Random()


class TraceParent(NamedTuple):
    """A span as others refer to it."""

    trace_id: int
    span_id: int
    sampled: bool

    def __str__(self) -> str:
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.sampled):02x}"

    @property
    def trace(self) -> str:
        """The trace id as backends write it."""
        return f"{self.trace_id:032x}"


def parse(header: str | None) -> TraceParent | None:
    """None: absent or not valid, and then a new trace is begun."""
    match = _PATTERN.match(header.strip()) if header else None
    if match is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in match.groups())
    return (
        TraceParent(trace_id, span_id, bool(flags & 1))
        if trace_id and span_id
        else None
    )


def begin(parent: TraceParent | None, ratio: float) -> TraceParent:
    """Our server span: a child of the caller's, sampled as the caller says, or a new trace sampled
    by `ratio`."""
    span_id = _random.getrandbits(64) or 1
    if parent is not None:
        return TraceParent(parent.trace_id, span_id, parent.sampled)
    trace_id = _random.getrandbits(128) or 1
    return TraceParent(trace_id, span_id, (trace_id & (2**63 - 1)) < ratio * 2**63)
