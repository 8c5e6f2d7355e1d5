"""The live view: a panel on a terminal, plain lines elsewhere; percentiles as they come."""

import io
from types import SimpleNamespace

import pytest

from loadgen.send.wire import clock
from loadgen.show.progress import ProgressView, RunningPercentiles
from tests.loadgen.made import failed, made


class Terminal(io.StringIO):
    def isatty(self):
        return True


def view_of(records, stream):
    driver = SimpleNamespace(
        records=records,
        requests=[SimpleNamespace(at=0.0, after=None)] * 40,
        origin=clock() - 2.0,
    )
    return ProgressView(driver, title="lars -> http://x (m)", stream=stream), driver


def records():
    long = made(9, tokens=(3.0, 3.1), kind="long")
    waiting = made(
        10, sent=clock() - 1.5, tokens=(), ended_at=None, usage_completion_tokens=None
    )
    return [
        *(made(i, tokens=(0.5, 0.52)) for i in range(8)),
        long,
        failed(11),
        waiting,
        made(12, tokens=(0.1,), kind="probe"),
    ]


def test_histogram_is_right_within_two_percent():
    histogram = RunningPercentiles()
    assert histogram.percentile(50) is None
    histogram.add(i / 1000 for i in range(1, 1001))
    for percent in (1, 50, 99, 100):
        assert histogram.percentile(percent) == pytest.approx(percent / 100, rel=0.03)
    histogram.add([0.0])


def test_plain_lines_without_a_terminal():
    stream = io.StringIO()
    view, driver = view_of(records(), stream)
    view.draw()
    driver.records.append(made(13, tokens=(0.2,)))
    view.draw()
    first, second = stream.getvalue().splitlines()
    assert "sent 11/40  done 9  failed 1  in flight 1" in first
    assert "short TTFT P50/P99 5" in first
    assert "1 x HTTP 503: full" in first
    assert "sent 12/40  done 10" in second
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_gets_a_panel_that_is_redrawn():
    stream = Terminal()
    view, _ = view_of(records(), stream)
    view.draw()
    panel = stream.getvalue()
    assert "[######" in panel
    assert "10 of 40 ended, 11 sent, 1 in flight, 1 failed" in panel
    assert "longest wait for a first token 1.5 s" in panel
    assert panel.count("\n") == 9
    view.draw()
    assert f"\x1b[{panel.count(chr(10))}A\x1b[J" in stream.getvalue()


def test_before_anything_was_sent():
    view, _ = view_of([], Terminal())
    view.draw()
