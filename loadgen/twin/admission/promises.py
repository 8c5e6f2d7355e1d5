"""Whether what a server announces comes true: the time to first token over what was announced on
arrival; and whether its deadline was met."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from loadgen.judge.latencies import percentile
from loadgen.records import LONG, SHORT, RequestRecord
from loadgen.show.tables import Table
from loadgen.twin.admission.floods import TRUE

POINTS = 10  # of the curve


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
    low, high = TRUE
    found = []
    for kind, chosen in kinds:
        ratios = [ratio for _, ratio in ratios_of(chosen)]
        if not ratios:
            continue
        within = [low <= ratio <= high for ratio in ratios]
        late = [ratio > high for ratio in ratios]
        found.append(
            Promises(
                kind=kind,
                count=len(ratios),
                true=sum(within) / len(ratios),
                late=sum(late) / len(ratios),
                in_time=sum([_in_time(one) for one in chosen]) / len(chosen),
                p10=percentile(ratios, 10),
                p50=percentile(ratios, 50),
                p90=percentile(ratios, 90),
            )
        )
    return found


def _in_time(record: RequestRecord) -> bool:
    if not len(record.token_times) or record.deadline_s is None:
        return False
    return record.token_times[0] - (record.sent_at or 0.0) <= record.deadline_s


def curve_of(records: Sequence[RequestRecord]) -> Table:
    """The calibration curve: equally many requests a row, from those announced soonest on."""
    ratios = ratios_of(records)
    rows = []
    for point in range(POINTS):
        part = ratios[
            len(ratios) * point // POINTS : len(ratios) * (point + 1) // POINTS
        ]
        if part:
            announced_s = percentile([announced for announced, _ in part], 50)
            of_it = [ratio for _, ratio in part]
            middle = percentile(of_it, 50)
            rows.append(
                [
                    f"{1000 * announced_s:,.0f} ms",
                    f"{1000 * announced_s * middle:,.0f} ms",
                    *(f"{percentile(of_it, percent):.2f}" for percent in (10, 50, 90)),
                ]
            )
    return ["announced", "came after", "ratio P10", "P50", "P90"], rows
