"""The calibration curve of announcements."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.judge.latencies import percentile
from loadgen.judge.promises import ratios_of
from loadgen.records import RequestRecord
from loadgen.show.tables import Table

POINTS = 10


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
