"""The figures of `reproduce`. Each takes the numbers that an experiment left, so they can be drawn
again from JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loadgen.show.canvas import CYCLE, DASHES, empty_figure, plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKS = "os^Dv*PX"
NAMES = {
    "fcfs": "FCFS, not preemptive",
    "fcfs_chunked": "FCFS, chunked",
    "edf": "EDF",
    "lrs": "LRS",
    "lars": "LARS",
    "esp_tp2": "LoongServe-like, TP2 ESP8",
    "esp_tp8": "LoongServe-like, TP8 ESP2",
}


def draw_all(drawn: dict[str, Any], directory: Path) -> list[Path]:
    """Every figure there are numbers for."""
    paths = []
    for name, draw in PICTURES.items():
        if name in drawn:
            paths.append(directory / f"{name}.png")
            draw(drawn[name], paths[-1])
    return paths


def _convoy(data: dict[str, Any], path: Path) -> None:
    figure = empty_figure(1, 2)
    for axes, column, title in zip(figure.axes, (1, 2), ("P50", "P99"), strict=True):
        for index, (policy, points) in enumerate(data.items()):
            _line(
                axes,
                [100 * point[0] for point in points],
                [point[column] for point in points],
                index,
                NAMES[policy],
            )
        _log(axes, "y")
        axes.set(
            xlabel="long requests, %",
            ylabel="seconds",
            title=f"Time to first token of all requests, {title}",
        )
        axes.legend(fontsize="small")
    _title(
        figure, "Convoy: Llama-3 8B on 16 A100 (TP8 SPP2), 0.75 requests/s, simulated"
    )
    figure.savefig(path)


def _policies(data: dict[str, Any], path: Path) -> None:
    figure = empty_figure(1, 2)
    for axes, kind in zip(figure.axes, ("short", "long"), strict=True):
        for index, (policy, values) in enumerate(data.items()):
            ordered = np.sort(values[kind])
            shares = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
            axes.step(
                ordered,
                shares,
                where="post",
                color=CYCLE[index],
                linestyle=DASHES[index],
                label=NAMES[policy],
            )
        _log(axes, "x")
        axes.set(
            xlabel="TTFT, times the idle server's",
            ylabel="% of requests at or below",
            title=f"{kind} requests",
        )
        axes.legend(fontsize="small", loc="lower right")
    _title(figure, "Policies at 0.75 requests/s with 5% long requests, simulated")
    figure.savefig(path)


def _capacity(data: dict[str, Any], path: Path) -> None:
    figure = empty_figure(1, 1)
    axes = figure.axes[0]
    for index, (policy, points) in enumerate(data["lines"].items()):
        _line(
            axes,
            [point[0] for point in points],
            [point[1] for point in points],
            index,
            NAMES[policy],
        )
    systems = list(data["lines"])
    for policy, rate in data["best"].items():
        axes.axvline(
            rate,
            color=CYCLE[systems.index(policy)],
            linestyle=":",
            label=f"capacity of {NAMES[policy]}: {rate:.2g}/s",
        )
    _log(axes, "x")
    _log(axes, "y")
    axes.axhline(1.0, color="#888888", linewidth=0.8, linestyle="--")
    axes.set(xlabel="requests per second, 5% long", ylabel="seconds")
    axes.set_title(
        "P90 of short requests' time to first token, simulated", fontsize="medium"
    )
    axes.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.set_size_inches(8.6, 3.9)
    figure.savefig(path)


def _elastic(data: dict[str, Any], path: Path) -> None:
    figure = empty_figure(1, 2)
    runs = data["runs"]
    places = np.arange(len(runs))
    names = [NAMES.get(name, name) for name in runs]
    for axes, kind, percents in zip(
        figure.axes, ("short", "long"), ((50, 90, 99), (50, 99)), strict=True
    ):
        for index, percent in enumerate(percents):
            at = [values[f"{kind} P{percent}"] for values in runs.values()]
            offset = 0.26 * (index - (len(percents) - 1) / 2)
            colour = CYCLE[(50, 90, 99).index(percent)]
            axes.barh(places + offset, at, 0.24, color=colour, label=f"P{percent}")
        axes.set_yticks(
            places, names if kind == "short" else [""] * len(names), fontsize="small"
        )
        axes.invert_yaxis()
        _log(axes, "x")
        axes.set(xlabel="time to first token, seconds", title=f"{kind} requests")
    for place, name in enumerate(runs):
        draws = data["draws"].get(name, [])
        label = "P50 in five draws" if place == 0 else None
        figure.axes[0].plot(
            draws, [place - 0.26] * len(draws), "k.", markersize=4, label=label
        )
    below = (0.5, -0.16)
    figure.axes[0].legend(
        fontsize="small", ncols=4, loc="upper center", bbox_to_anchor=below
    )
    _title(figure, "Elastic instances on 16 A100, 0.75 requests/s, 5% long, simulated")
    figure.savefig(path)


def _pools(data: dict[str, Any], path: Path) -> None:
    figure = empty_figure(1, 2)
    for axes, kind in zip(figure.axes, ("short", "long"), strict=True):
        for index, (name, values) in enumerate(data.items()):
            ordered = np.sort(values[kind])
            shares = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
            axes.step(
                ordered,
                shares,
                where="post",
                color=CYCLE[index],
                linestyle=DASHES[index],
                label=name,
            )
        _log(axes, "x")
        axes.set(
            xlabel="time to first token, seconds",
            ylabel="% of requests at or below",
            title=f"{kind} requests",
        )
        axes.legend(fontsize="small", loc="lower right")
    _title(
        figure,
        "Reserved pools against one pool: 16 A100, 0.5 requests/s, 5% long, simulated",
    )
    figure.savefig(path)


def _spp(data: dict[str, Any], path: Path) -> None:
    figure = empty_figure(1, 2)
    left, right = figure.axes
    for index, (name, points) in enumerate(data.items()):
        gpus = [point[0] for point in points]
        _line(left, gpus, [point[1] for point in points], index, name)
        _line(right, gpus, [100 * point[2] for point in points], index, name)
    for axes in (left, right):
        _log(axes, "x")
        axes.set_xticks([8, 16, 32, 64, 128], ["8", "16", "32", "64", "128"])
        axes.set_xlabel("H100s (8 per stage)")
    _log(left, "y")
    left.set(ylabel="seconds", title="Time to first token of a lone prompt")
    right.set(ylabel="%", ylim=(0, 105), title="Scaling efficiency over one stage")
    right.axhline(80, color="#888888", linewidth=0.8, linestyle="--")
    left.legend(fontsize="x-small", ncols=2)
    _title(figure, "Stream pipeline parallelism, simulated (dashed: the paper's 80%)")
    figure.savefig(path)


def _kvp(data: dict[str, Any], path: Path) -> None:
    figure = empty_figure(1, 1)
    axes = figure.axes[0]
    names = list(data)
    for index, degree in enumerate((1, 2, 4)):
        at = [1000 * dict(data[name])[degree] for name in names]
        places = np.arange(len(names)) + 0.26 * (index - 1)
        bars = axes.bar(places, at, 0.24, color=CYCLE[index], label=f"KVP {degree}")
        axes.bar_label(bars, fmt="%.0f", fontsize="x-small")
    axes.set_xticks(range(len(names)), names)
    axes.set(
        xlabel="context, tokens",
        ylabel="ms",
        title="Time per output token by KVP degree, 8B, TP8 SPP4, simulated",
    )
    axes.legend(fontsize="small")
    figure.savefig(path)


def _grids(data: dict[str, Any], path: Path) -> None:
    figure = empty_figure(1, 1)
    axes = figure.axes[0]
    for index, (name, values) in enumerate(data.items()):
        ordered = 1000 * np.sort(values)
        shares = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
        axes.step(
            ordered,
            shares,
            where="post",
            color=CYCLE[index],
            linestyle=DASHES[index],
            label=name,
        )
    axes.set(
        xlabel="mean ms between a request's tokens", ylabel="% of requests at or below"
    )
    axes.set_title("64 H100, 1.75 requests/s, 5% long, simulated", fontsize="medium")
    axes.legend(fontsize="small", loc="lower right")
    figure.savefig(path)


def _attention(data: dict[str, Any], path: Path) -> None:
    figure = empty_figure(1, 1)
    axes = figure.axes[0]
    for index, (name, points) in enumerate(data.items()):
        _line(
            axes,
            [point[0] for point in points],
            [point[1] for point in points],
            index,
            name,
        )
    _log(axes, "x")
    axes.axhline(
        1.11,
        color="#888888",
        linewidth=0.8,
        linestyle="--",
        label="paper, chunk 32: 1.11",
    )
    axes.set(
        xlabel="chunk, tokens", ylabel="times that of chunks of 2,048", ylim=(0.9, None)
    )
    axes.set_title(
        "Attention time at 1M tokens of context, H100, cost model", fontsize="medium"
    )
    axes.legend(fontsize="small")
    figure.savefig(path)


def _frontier(data: dict[str, Any], path: Path) -> None:
    figure = empty_figure(1, 1)
    axes = figure.axes[0]
    for index, (name, points) in enumerate(data.items()):
        x = [1000 * point[2] for point in points]
        y = [point[1] for point in points]
        _line(axes, x, y, index, name)
        for label, at_x, at_y in zip([point[0] for point in points], x, y, strict=True):
            place = (4, 5) if index == 0 else (-4, -11)
            axes.annotate(
                label,
                (at_x, at_y),
                xytext=place,
                textcoords="offset points",
                fontsize="x-small",
                color=CYCLE[index],
            )
    _log(axes, "x")
    _log(axes, "y")
    axes.set(
        xlabel="P95 time between tokens of 16 chats, ms",
        ylabel="TTFT of a 1M prompt, seconds",
    )
    axes.set_title(
        "Adaptive against fixed chunks: 8B, 32 H100 (TP8 SPP4), simulated",
        fontsize="medium",
    )
    axes.legend(fontsize="small")
    figure.savefig(path)


def _line(axes: Axes, x: list[float], y: list[float], index: int, label: str) -> None:
    axes.plot(
        x,
        y,
        color=CYCLE[index % 8],
        linestyle=DASHES[index % 8],
        marker=MARKS[index % 8],
        markersize=4,
        label=label,
    )


def _log(axes: Axes, which: str) -> None:
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    plain_ticks(axes, which)


def _title(figure: Any, text: str) -> None:
    figure.suptitle(text, fontsize="medium")


PICTURES: dict[str, Callable[[Any, Path], None]] = {
    "convoy": _convoy,
    "policies": _policies,
    "capacity": _capacity,
    "elastic": _elastic,
    "pools": _pools,
    "spp": _spp,
    "kvp": _kvp,
    "grids": _grids,
    "attention": _attention,
    "frontier": _frontier,
}
