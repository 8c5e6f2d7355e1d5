"""The figures of a run, of several, of a capacity, drawn with matplotlib (the extra `report`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.judge.metrics import RequestMetrics, classes_of, load_of, values_of
from loadgen.records import LONG
from loadgen.show.canvas import COLOURS, CYCLE, DASHES, empty_figure, plain_ticks
from loadgen.show.layout import VEEKSHA

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# seconds; tokens that arrived together have a gap of nothing, which a logarithmic axis cannot show
_FLOOR = 1e-4
TITLES = {
    "ttft": ("Time to first token", "seconds"),
    "itl": ("Time between tokens", "seconds"),
    "tpot": ("Time per output token, mean of a request", "seconds"),
    "e2el": ("End-to-end latency", "seconds"),
    "normalized_ttft": (
        "Time to first token, relative to the idle server",
        "times the idle server's",
    ),
}


def available() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def draw_run(requests: list[RequestMetrics], directory: Path) -> list[tuple[str, Path]]:
    """All figures of a run; returns (caption, file) in the order in which they should be read."""
    drawn = []
    for metric in ("ttft", "normalized_ttft", "itl", "tpot", "e2el"):
        series = {
            kind: values_of(load_of(requests, kind), metric)
            for kind in classes_of(requests)
        }
        if any(len(values) for values in series.values()):
            path = directory / f"{VEEKSHA[metric][0]}.png"
            _save(_cdf(metric, series, COLOURS), path)
            of = "gaps" if metric == "itl" else "requests"
            drawn.append((f"{TITLES[metric][0]}: share of the {of}", path))
    over_time = directory / "ttft_over_time.png"
    if _save(_ttft_over_time(requests), over_time):
        drawn.insert(
            1, ("Time to first token of every request, by when it was sent", over_time)
        )
    throughput = directory / "throughput.png"
    if _save(_throughput(requests), throughput):
        drawn.append(("Load and throughput over time", throughput))
    return drawn


def draw_comparison(runs: Mapping[str, list[RequestMetrics]], path: Path) -> None:
    """TTFT of short and of long requests, TBT and end-to-end latency of several runs in one
    figure."""
    present: set[str] = set()
    for requests in runs.values():
        present |= set(classes_of(load_of(requests)))
    kinds = sorted(present, reverse=True)
    panels: list[tuple[str, str | None]] = [
        *(("ttft", kind) for kind in kinds),
        ("itl", None),
        ("e2el", None),
    ]
    figure = empty_figure(-(-len(panels) // 2), 2)
    for axes in figure.axes[len(panels) :]:
        axes.set_axis_off()
    for axes, (metric, kind) in zip(figure.axes, panels, strict=False):
        series = {
            name: values_of(load_of(requests, kind), metric)
            for name, requests in runs.items()
        }
        _draw_cdf(axes, metric, series, {})
        axes.set_title(f"{TITLES[metric][0]}" + (f", {kind} requests" if kind else ""))
    _save(figure, path)


def draw_capacity(
    rates: Sequence[float],
    shares: Sequence[float],
    wanted: float,
    best: float | None,
    path: Path,
) -> None:
    """Share of good requests at every rate that was tried."""
    figure = empty_figure(1, 1)
    axes = figure.axes[0]
    order = np.argsort(rates)
    axes.plot(
        np.array(rates)[order],
        100 * np.array(shares)[order],
        "o-",
        color=CYCLE[0],
        label="measured",
    )
    axes.axhline(
        100 * wanted,
        color=CYCLE[1],
        linestyle="--",
        label=f"objective: {100 * wanted:g}%",
    )
    if best is not None:
        axes.axvline(
            best,
            color=CYCLE[2],
            linestyle=":",
            label=f"capacity: {best:.3g} requests/s",
        )
    axes.set(
        xlabel="offered requests per second",
        ylabel="requests that met all objectives, %",
        ylim=(-2, 102),
    )
    axes.set_title("Capacity under objectives")
    axes.legend(loc="lower left")
    _save(figure, path)


def _save(figure: Figure | None, path: Path) -> bool:
    if figure is None:
        return False
    figure.savefig(path)
    return True


def _cdf(metric: str, series: Mapping[str, Any], colours: Mapping[str, str]) -> Figure:
    figure = empty_figure(1, 1)
    _draw_cdf(figure.axes[0], metric, series, colours)
    figure.axes[0].set_title(TITLES[metric][0])
    return figure


def _draw_cdf(
    axes: Axes, metric: str, series: Mapping[str, Any], colours: Mapping[str, str]
) -> None:
    """Cumulative shares on a logarithmic axis: tails that are 100 times the median stay in the
    picture."""
    for index, (name, values) in enumerate(series.items()):
        if not len(values):
            continue
        count = len(values)
        shares = np.arange(1, count + 1) / count
        if count > 4000:  # the picture has no more pixels than that
            picks = np.unique(np.linspace(0, count - 1, 4000).astype(int))
            values = values[picks]
            shares = shares[picks]
        style: dict[str, Any] = {
            "color": colours.get(name, CYCLE[index % len(CYCLE)]),
            "linestyle": DASHES[index % len(DASHES)],
        }
        values = np.maximum(values, _FLOOR)
        line = axes.step(
            np.r_[values[0], values], np.r_[0, 100 * shares], where="post", **style
        )[0]
        line.set_label(f"{name} ({count:,})")
    axes.set_xscale("log")
    plain_ticks(axes, "x")
    clipped = any(len(values) and values[0] < _FLOOR for values in series.values())
    unit = TITLES[metric][1] + (f" ({_FLOOR:g}: or less)" if clipped else "")
    axes.set(xlabel=unit, ylabel="% at or below", ylim=(0, 101))
    for share in (50, 99):
        axes.axhline(share, color="#888888", linewidth=0.7, linestyle=(0, (1, 2)))
        at: dict[str, Any] = {
            "xy": (1.0, share),
            "xycoords": ("axes fraction", "data"),
            "textcoords": "offset points",
        }
        axes.annotate(
            f"P{share}",
            **at,
            xytext=(3, -3),
            fontsize="x-small",
            color="#555555",
            annotation_clip=False,
        )
    axes.legend(
        loc="lower right",
        title="requests" if metric != "itl" else "gaps",
        fontsize="small",
    )


def _ttft_over_time(requests: list[RequestMetrics]) -> Figure | None:
    """The paper's figure 1b: a point per request; while a long prompt is being read, the background
    is shaded."""
    seen = [
        request
        for request in requests
        if request.ttft is not None and request.record.sent_at is not None
    ]
    if not seen:
        return None
    figure = empty_figure(1, 1)
    axes = figure.axes[0]
    for request in load_of(seen, LONG):
        start = request.record.sent_at or 0.0
        axes.axvspan(
            start,
            start + (request.ttft or 0.0),
            color=COLOURS["long"],
            alpha=0.08,
            linewidth=0,
        )
    markers = {"short": "o", "long": "^", "probe": "x"}
    for kind in classes_of(seen):
        points = load_of(seen, kind)
        times = [request.record.sent_at or 0.0 for request in points]
        values = [request.ttft or 0.0 for request in points]
        look: dict[str, Any] = {
            "s": 42 if kind == LONG else 14,
            "marker": markers[kind],
            "color": COLOURS[kind],
            "alpha": 0.75,
        }
        axes.scatter(times, values, label=kind, linewidths=0.8, **look)
    axes.set_yscale("log")
    plain_ticks(axes, "y")
    axes.set(
        xlabel="sent at, seconds after the start", ylabel="time to first token, seconds"
    )
    shaded = (
        " (shaded: a long prompt waits for its first token)"
        if load_of(seen, LONG)
        else ""
    )
    axes.set_title(f"Time to first token over time{shaded}", fontsize="medium")
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.0, 1.0), title="requests", fontsize="small"
    )
    return figure


def _throughput(requests: list[RequestMetrics]) -> Figure | None:
    """Requests offered and completed, and tokens received, per second; and the requests in
    flight."""
    records = [
        request.record
        for request in load_of(requests)
        if request.record.sent_at is not None
    ]
    ends = [record.ended_at for record in records if record.ended_at is not None]
    if not ends:
        return None
    bins = np.linspace(
        0, max(max(ends), 1e-3), int(np.clip(len(records) // 8, 8, 100)) + 1
    )
    figure = empty_figure(3, 1)
    figure.set_size_inches(6.4, 7.5)
    top, middle, bottom = figure.axes
    offered = [record.scheduled_at for record in records]
    done = [record.ended_at for record in records if record.completed]
    _draw_rate(top, offered, bins, color=CYCLE[0], label="offered")
    _draw_rate(top, done, bins, color=CYCLE[1], linestyle="--", label="completed")
    top.set(ylabel="requests per second", title="Load and throughput")
    top.legend(fontsize="small")
    tokens = [record.token_times for record in records if len(record.token_times)]
    received: Any = np.concatenate(tokens) if tokens else []
    _draw_rate(middle, received, bins, color=CYCLE[2])
    middle.set(ylabel="token events per second")
    starts = np.sort([record.sent_at for record in records])
    flying = np.searchsorted(starts, bins, "right") - np.searchsorted(
        np.sort(ends), bins, "right"
    )
    bottom.step(bins, flying, where="post", color=CYCLE[3])
    bottom.set(ylabel="requests in flight", xlabel="seconds after the start")
    for axes in figure.axes:
        axes.set_xlim(0, bins[-1])
        axes.set_ylim(bottom=0)
    return figure


def _draw_rate(axes: Axes, instants: Any, bins: Any, **style: Any) -> None:
    """How many of the instants fall into each second, a step for each of the bins (seconds)."""
    width = bins[1] - bins[0]
    centres = (bins[1:] + bins[:-1]) / 2
    rates = np.histogram(instants, bins)[0] / width
    axes.step(centres, rates, where="mid", **style)
