"""What is seen while a run is under way: a small panel on a terminal, plain lines elsewhere (log
files, CI)."""

from __future__ import annotations

import asyncio
import math
import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import TextIO

from loadgen.records import PROBE, RequestRecord
from loadgen.send.driver import Driver
from loadgen.send.wire import clock
from loadgen.show.tables import bar, columns_of

_STEP = 0.02  # histogram buckets are 2% wide


class RunningPercentiles:
    """Percentiles of seconds, cheap to add to and to ask."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._count = 0

    def add(self, values: Iterable[float]) -> None:
        for value in values:
            self._buckets[math.ceil(math.log(max(value, 1e-6)) / _STEP)] += 1
            self._count += 1

    def percentile(self, percent: float) -> float | None:
        """Upper end of the bucket that holds the percentile; None without values."""
        remaining = math.ceil(self._count * percent / 100)
        for bucket in sorted(self._buckets):
            remaining -= self._buckets[bucket]
            if remaining <= 0:
                return math.exp(bucket * _STEP)
        return None

    def percentiles(self, *percents: float) -> list[float | None]:
        return [self.percentile(percent) for percent in percents]


class ProgressView:
    """Looks at a driver now and then; never touches it."""

    def __init__(
        self,
        driver: Driver,
        *,
        title: str,
        stream: TextIO | None = None,
        interval_s: float | None = None,
    ) -> None:
        self._driver = driver
        self._title = title
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._interval_s = interval_s or (0.5 if self._terminal else 10.0)
        self._ttft: dict[str, RunningPercentiles] = {}
        self._gaps: dict[str, RunningPercentiles] = {}
        self._pending: list[RequestRecord] = []
        self._seen = 0
        self._counts: Counter[str] = Counter()
        self._errors: Counter[str] = Counter()
        self._late = RunningPercentiles()
        self._tokens = 0
        self._drawn = 0

    async def show(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            self.draw()

    def draw(self) -> None:
        self._look()
        width = shutil.get_terminal_size().columns if self._terminal else 1000
        lines = [
            line[: width - 1]
            for line in (self._panel() if self._terminal else [self._line()])
        ]
        if self._terminal and self._drawn:
            self._stream.write(f"\x1b[{self._drawn}A\x1b[J")
        self._stream.write("\n".join(lines) + "\n")
        self._stream.flush()
        self._drawn = len(lines)

    def _look(self) -> None:
        """Take in what is new: requests sent since the last look, and those that have ended."""
        new = self._driver.records[self._seen :]
        self._seen += len(new)
        self._pending += new
        self._late.add(
            max(0.0, record.sent_at - record.released_at)
            for record in new
            if record.sent_at is not None
        )
        still = []
        for record in self._pending:
            if record.ended_at is None:
                still.append(record)
            else:
                self._take(record)
        self._pending = still

    def _take(self, record: RequestRecord) -> None:
        outcome = (
            "done"
            if record.completed
            else "cancelled"
            if record.cancelled
            else "failed"
        )
        if record.kind != PROBE:
            self._counts[outcome] += 1
        if record.error and not record.cancelled:
            self._errors[record.error] += 1
        times = record.token_times
        if record.completed and record.sent_at is not None and len(times):
            self._ttft.setdefault(record.kind, RunningPercentiles()).add(
                [times[0] - record.sent_at]
            )
            self._gaps.setdefault(record.kind, RunningPercentiles()).add(
                after - before for before, after in pairwise(times)
            )
        if record.kind != PROBE:
            self._tokens += len(times)

    def _figures(self) -> dict[str, float]:
        elapsed = max(clock() - self._driver.origin, 1e-9)
        requests = self._driver.requests
        first = [request for request in requests if request.after is None]
        due = sum(1 for request in first if request.at is None or request.at <= elapsed)
        waiting = [
            clock() - r.sent_at
            for r in self._pending
            if r.sent_at is not None and not len(r.token_times)
        ]
        sent = self._counts.total() + sum(
            record.kind != PROBE for record in self._pending
        )
        return {
            "elapsed": elapsed,
            "total": len(requests),
            "sent": sent,
            "offered": due / elapsed,
            "sending": sent / elapsed,
            "flying": sent - self._counts.total(),
            "tokens": (
                self._tokens
                + sum(len(r.token_times) for r in self._pending if r.kind != PROBE)
            )
            / elapsed,
            "longest": max(waiting, default=0.0),
        }

    def _line(self) -> str:
        figures = self._figures()
        parts = [
            f"{figures['elapsed']:7.1f} s  sent {figures['sent']:.0f}/{figures['total']:.0f}",
            f"done {self._counts['done']}  failed {self._counts['failed']}  in flight "
            f"{figures['flying']:.0f}",
            f"{figures['tokens']:.1f} tokens/s",
        ]
        for kind, histogram in self._ttft.items():
            parts.append(
                f"{kind} TTFT P50/P99 "
                f"{_ms(histogram.percentile(50))}/{_ms(histogram.percentile(99))} ms"
            )
        if self._errors:
            message, count = self._errors.most_common(1)[0]
            parts.append(f"{count} x {message[:60]}")
        return "  ".join(parts)

    def _panel(self) -> list[str]:
        figures = self._figures()
        total = max(figures["total"], 1)
        ended = self._counts.total()
        lines = [
            f"{self._title}   {figures['elapsed']:.1f} s",
            f"[{bar(ended / total)}] {ended} of {figures['total']:.0f} ended, "
            f"{figures['sent']:.0f} sent, {figures['flying']:.0f} in flight, "
            f"{self._counts['failed']} failed",
            f"offered {figures['offered']:.2f}/s  sent {figures['sending']:.2f}/s  done "
            f"{self._counts['done'] / figures['elapsed']:.2f}/s  {figures['tokens']:.1f} tokens/s",
            f"longest wait for a first token {figures['longest']:.1f} s  "
            f"own lateness P99 {_ms(self._late.percentile(99))} ms",
        ]
        rows = [["ms", "TTFT P50", "P90", "P99", "TBT P50", "P90", "P99"]]
        for kind in self._ttft:
            ttft = self._ttft[kind].percentiles(50, 90, 99)
            gaps = self._gaps[kind].percentiles(50, 90, 99)
            rows.append([kind, *map(_ms, (*ttft, *gaps))])
        if len(rows) > 1:
            lines += columns_of(rows).splitlines()
        lines += [
            f"{count} x {message[:100]}"
            for message, count in self._errors.most_common(3)
        ]
        return lines


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    milliseconds = 1000 * seconds
    return f"{milliseconds:.1f}" if seconds < 1 else f"{milliseconds:.0f}"
