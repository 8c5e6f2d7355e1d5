"""The report of a run: one page for people, with its pictures."""

import re
import sys
from pathlib import Path

import pytest

from loadgen.show.canvas import plain_ticks
from tests.loadgen.show.written import written

sys.path.append(str(Path(__file__).parents[2] / "telemetry"))
from chromium import browse, executable

pytestmark = pytest.mark.usefixtures("no_figures")


def test_the_report_is_one_file_and_escapes(results):
    page = (results / "report.html").read_text()
    assert "first &lt;run&gt;" in page
    assert page.count("data:image/png;base64,") == 7
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "TTFT P99" in page
    assert "HTTP 503: full" in page


@pytest.mark.skipif(executable() is None, reason="needs Chromium")
async def test_the_report_fits_a_phone(results):
    async with browse((results / "report.html").as_uri()) as page:
        phone = {"width": 375, "height": 812, "deviceScaleFactor": 2, "mobile": True}
        await page.call("Emulation.setDeviceMetricsOverride", **phone)
        await page.until("document.readyState === 'complete' && innerWidth === 375")
        rights = (
            "[...document.images].map(image => image.getBoundingClientRect().right)"
        )
        widest = f"Math.max(...{rights})"
        assert await page.evaluate("document.documentElement.scrollWidth") == 375
        assert 300 < await page.evaluate(widest) <= 375
        health = "[...document.querySelectorAll('.wide')].at(-1)"
        assert await page.evaluate(f"{health}.scrollWidth <= {health}.clientWidth")


def test_nothing_in_the_report_is_wider_than_a_phone(results):
    page = (results / "report.html").read_text()
    assert 'name="viewport" content="width=device-width' in page
    assert "minmax(min(480px, 100%), 1fr)" in page
    assert page.count("<table>") == page.count('<div class="wide"><table>') > 2


@pytest.mark.parametrize(
    ("ends", "labels", "unlabelled"),
    [
        ((0.1, 9), ["0.1", "0.2", "0.5", "1", "2", "5"], []),
        (
            (0.001, 1),
            ["0.001", "0.002", "0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.5"],
            [],
        ),
        (
            (0.02, 100),
            ["0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50"],
            [],
        ),
        (
            (0.01, 400),
            ["0.01", "0.1", "1", "10", "100"],
            [0.02, 0.05, 0.2, 0.5, 2, 5, 20, 50, 200],
        ),
        ((0.12, 0.19), ["0.12", "0.13", "0.14", "0.15", "0.16"], []),
    ],
)
def test_logarithmic_axes_have_ticks_at_1_2_and_5(ends, labels, unlabelled):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.subplots()
    axes.set(xscale="log", xlim=ends)
    plain_ticks(axes, "x")
    low, high = ends
    shown = [
        t.get_text()
        for t in axes.get_xticklabels()
        if low <= t.get_position()[0] <= high
    ]
    assert shown[: len(labels)] == labels
    between = [value for value in axes.get_xticks(minor=True) if low <= value <= high]
    assert between == pytest.approx(unlabelled)


def test_pictures_are_pictures(results):
    for path in (results / "metrics").glob("*.png"):
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_without_matplotlib_there_are_tables(tmp_path):
    written(tmp_path / "run")
    assert not list(tmp_path.rglob("*.png"))
    assert (
        "matplotlib is not installed" in (tmp_path / "run" / "report.html").read_text()
    )
