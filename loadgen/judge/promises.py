"""Whether what a server announces comes true: the time to first token over what was announced on
arrival; and whether its deadline was met.

The server says both in headers, `x-medha-predicted-ttft-ms` and `x-medha-ttft-deadline-ms`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from loadgen.judge.latencies import percentile
from loadgen.records import LONG, SHORT, RequestRecord

# An announcement is true if the first token comes within these multiples of it.
TRUE = (0.8, 1.25)


class Promises(msgspec.Struct, frozen=True, kw_only=True):
    """Of requests of one kind: shares from 0 to 1; percentiles of TTFT over announced."""

    kind: str
    count: int
    true: float  # within TRUE
    late: float  # later than the larger of them
    in_time: float  # within the deadline that it was given
    p10: float
    p50: float
    p90: float


def ratios_of(records: Sequence[RequestRecord]) -> list[tuple[float, float]]:
    """(announced, TTFT over announced) of all that had a first token, in the order of the
    former."""
    found = []
    for record in records:
        announced_s = record.announced_ttft_s
        if announced_s and len(record.token_times) and record.sent_at is not None:
            found.append(
                (announced_s, (record.token_times[0] - record.sent_at) / announced_s)
            )
    return sorted(found)


def promises_of(records: Sequence[RequestRecord]) -> list[Promises]:
    """Of all, of short requests, of long ones."""
    kinds = [("all", list(records))]
    for kind in (SHORT, LONG):
        kinds.append((kind, [one for one in records if one.kind == kind]))
    found = [_promises(kind, chosen) for kind, chosen in kinds]
    return [one for one in found if one is not None]


def kept_of(records: Sequence[RequestRecord]) -> dict[str, Any]:
    """The same of one class, as figures of a result; nothing of a server that announces nothing."""
    found = _promises("", records)
    if found is None:
        return {}
    return {
        "announced_true": found.true,
        "announced_late": found.late,
        "deadlines_met": found.in_time,
    }


def _promises(kind: str, records: Sequence[RequestRecord]) -> Promises | None:
    ratios = [ratio for _, ratio in ratios_of(records)]
    if not ratios:
        return None
    low, high = TRUE
    within = [low <= ratio <= high for ratio in ratios]
    late = [ratio > high for ratio in ratios]
    return Promises(
        kind=kind,
        count=len(ratios),
        true=sum(within) / len(ratios),
        late=sum(late) / len(ratios),
        in_time=sum([_in_time(one) for one in records]) / len(records),
        p10=percentile(ratios, 10),
        p50=percentile(ratios, 50),
        p90=percentile(ratios, 90),
    )


def _in_time(record: RequestRecord) -> bool:
    if not len(record.token_times) or record.deadline_s is None:
        return False
    return record.token_times[0] - (record.sent_at or 0.0) <= record.deadline_s
