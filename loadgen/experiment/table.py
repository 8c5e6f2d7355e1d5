"""What the cells amount to: one row each, as a table and as a figure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from loadgen.show import figures
from loadgen.show.canvas import CYCLE
from loadgen.show.tables import Table, milliseconds, shown

# of each row (a variant under a load), result.json of its repeats
Results = Mapping[str, Sequence[dict[str, Any]]]


def _percent(value: float) -> str:
    return shown(value, "%")


_COLUMNS: tuple[tuple[str, str, str, str, Callable[[float], str]], ...] = (
    ("short TTFT P50", "short", "ttft", "median", milliseconds),
    ("P99", "short", "ttft", "p99", milliseconds),
    (
        "normalised P50",
        "short",
        "normalized_ttft",
        "median",
        lambda value: f"{value:.2f}",
    ),
    ("P99", "short", "normalized_ttft", "p99", lambda value: f"{value:.2f}"),
    ("TBT P99", "all", "itl", "p99", milliseconds),
    ("long TTFT P50", "long", "ttft", "median", milliseconds),
    ("P99", "long", "ttft", "p99", milliseconds),
    ("long within 1.5 idle", "long", "attainment", "", _percent),
    ("short deadlines met", "short", "deadlines_met", "", _percent),
    ("true", "all", "announced_true", "", _percent),
    ("late", "all", "announced_late", "", _percent),
    ("tokens/s", "all", "total_token_throughput", "", lambda value: f"{value:,.0f}"),
    ("good/s", "all", "request_goodput", "", lambda value: f"{value:.2f}"),
    ("completed", "all", "completion_rate", "", _percent),
)


def figure_of(
    result: Mapping[str, Any], kind: str, metric: str, name: str
) -> float | None:
    """One figure of a result.json, None if it has none."""
    value = result["classes"].get(kind, {}).get(metric)
    return value.get(name) if isinstance(value, dict) else value


def middle(
    results: Sequence[Mapping[str, Any]], kind: str, metric: str, name: str
) -> float | None:
    """The median over the repeats."""
    values = [figure_of(result, kind, metric, name) for result in results]
    known = [value for value in values if value is not None]
    return median(known) if known else None


def table(rows: Results) -> Table:
    """A row for each variant under each load; medians over the repeats."""
    body = []
    for row, results in rows.items():
        values = [middle(results, *pick[1:4]) for pick in _COLUMNS]
        cells = [
            "-" if value is None else pick[4](value)
            for pick, value in zip(_COLUMNS, values, strict=True)
        ]
        body.append([row, *cells])
    return ["", *(title for title, *_ in _COLUMNS)], body


def draw_frontier(rows: Results, path: Path) -> bool:
    """Time between tokens against time to first token, fixed chunks and budgets as lines (the
    paper's figure 4)."""
    if not figures.available():
        return False
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.2))
    for index, family in enumerate(("fixed", "budget")):
        points = []
        for row, results in rows.items():
            tbt = middle(results, "all", "itl", "p99")
            ttft = middle(results, "long", "ttft", "median")
            if row.startswith(family) and tbt is not None and ttft is not None:
                points.append(
                    (
                        float(re.findall(r"[\d.]+", row)[0]),
                        tbt,
                        ttft / 1000,
                        row.split(",")[0],
                    )
                )
        points.sort()
        axes.plot(
            [p[1] for p in points],
            [p[2] for p in points],
            "o-",
            color=CYCLE[index],
            label=family,
        )
        for _, x, y, name in points:
            axes.annotate(
                name.split("-", 1)[1],
                (x, y),
                fontsize=7,
                xytext=(4, 4),
                textcoords="offset points",
            )
    axes.margins(x=0.15)
    axes.set(
        xscale="log",
        xlabel="time between tokens, P99, ms",
        ylabel="time to first token of long prompts, P50, s",
    )
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True
