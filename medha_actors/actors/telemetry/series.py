"""What figures are made of: named histograms, by class of prompt length where that matters, and
families of one number."""

from __future__ import annotations

from bisect import bisect_right

from medha_actors.telemetry.histogram import Family, Histogram, Labels

CLASSES = ("short", "medium", "long", "huge")  # of prompts
_CLASS_BEGINS = (1024, 8192, 65_536)  # at so many tokens


def length_class(tokens: int) -> str:
    """The class of a prompt in labels and on the page."""
    return CLASSES[bisect_right(_CLASS_BEGINS, tokens)]


class Histograms:
    """Histograms under their names, each with all its series."""

    def __init__(self) -> None:
        self._named: dict[str, tuple[str, dict[Labels, Histogram]]] = {}

    def new(self, name: str, bounds: tuple[float, ...], text: str) -> Histogram:
        """One without labels."""
        histogram = Histogram.of(bounds)
        self._named[name] = text, {(): histogram}
        return histogram

    def by_class(
        self, name: str, bounds: tuple[float, ...], text: str
    ) -> dict[str, Histogram]:
        """One for each class of prompt length: among many short requests, what a few long ones see
        would not show."""
        histograms = {size: Histogram.of(bounds) for size in CLASSES}
        series: dict[Labels, Histogram] = {}
        for size, histogram in histograms.items():
            series[(("class", size),)] = histogram
        self._named[name] = f"{text}, by class of prompt length", series
        return histograms

    def growing(self, name: str, text: str) -> dict[Labels, Histogram]:
        """Series that are added as they are seen."""
        series: dict[Labels, Histogram] = {}
        self._named[name] = text, series
        return series

    def series(self, name: str) -> dict[Labels, Histogram]:
        """All series of one name."""
        return self._named[name][1]

    def families(self) -> list[Family]:
        """For `exposition`."""
        return [
            Family(name, "histogram", text, histograms=series)
            for name, (text, series) in self._named.items()
        ]


def gauge(name: str, text: str, value: float) -> Family:
    """A number that goes up and down."""
    return Family(name, "gauge", text, {(): float(value)})


def counter(name: str, text: str, value: float) -> Family:
    """A number that only goes up."""
    return Family(name, "counter", text, {(): float(value)})


def count(series: dict[Labels, float], **labels: str) -> None:
    """One more in the series with these labels."""
    key = tuple(labels.items())
    series[key] = series.get(key, 0.0) + 1.0
