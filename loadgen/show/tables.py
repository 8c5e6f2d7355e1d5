"""Results as tables of text, for the terminal, for Markdown and for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Table = tuple[list[str], list[list[str]]]  # header, rows

_COUNTS = (
    ("requests", "Requests", ""),
    ("completed", "Completed", ""),
    ("failed", "Failed", ""),
    ("cancelled", "Cancelled", ""),
    ("completion_rate", "Completion rate", "%"),
    ("input_tokens", "Prompt tokens", ""),
    ("output_tokens", "Generated tokens", ""),
    ("cached_tokens", "Cached prompt tokens", ""),
    ("hit_rate", "Hit rate", "%"),
    ("hit_bound", "Hit rate without bounds", "%"),
    ("request_throughput", "Requests/s", ""),
    ("output_throughput", "Generated tokens/s", ""),
    ("total_token_throughput", "All tokens/s", ""),
    ("request_goodput", "Goodput, requests/s", ""),
    ("attainment", "Met all objectives", "%"),
    ("fluidity_index", "Fluidity index", ""),
    ("deadline_miss_rate", "Token deadlines missed", "%"),
    ("announced_true", "TTFT as announced (0.8 to 1.25 times)", "%"),
    ("announced_late", "TTFT later than 1.25 times as announced", "%"),
    ("deadlines_met", "Server's own deadlines met", "%"),
)
_LATENCIES = (
    ("ttft", "TTFT", "ms"),
    ("normalized_ttft", "TTFT / idle TTFT", ""),
    ("itl", "TBT (gaps)", "ms"),
    ("tpot", "TPOT", "ms"),
    ("e2el", "End to end", "ms"),
)


def class_table(columns: Mapping[str, Mapping[str, Any]]) -> Table:
    """Figures of several classes or runs side by side; rows that nobody has are left out."""
    counts, latencies = split_table(columns)
    return counts[0], counts[1] + latencies[1]


def split_table(columns: Mapping[str, Mapping[str, Any]]) -> tuple[Table, Table]:
    """The same as two tables: counts and rates, and latencies."""
    counts = []
    for key, title, unit in _COUNTS:
        if any(key in figures for figures in columns.values()):
            cells = [shown(figures.get(key), unit) for figures in columns.values()]
            if key != "cancelled" or any(
                figures.get(key) for figures in columns.values()
            ):
                counts.append([title, *cells])
    latencies = []
    for key, title, unit in _LATENCIES:
        for name in _shown_names(columns, key):
            label = f"{title} {name.upper() if name.startswith('p') else name}"
            if unit:
                label += f", {unit}"
            values = [figures.get(key, {}).get(name) for figures in columns.values()]
            latencies.append([label, *(shown(value, "") for value in values)])
    return (["", *columns], counts), (["", *columns], latencies)


def _shown_names(columns: Mapping[str, Mapping[str, Any]], key: str) -> list[str]:
    """The mean, the largest and the percentiles that any column has of a latency, in its order."""
    names: dict[str, None] = {}  # a set in the order of appearance
    for figures in columns.values():
        names |= dict.fromkeys(figures.get(key, {}))
    return [name for name in names if name in ("mean", "max") or name.startswith("p")]


def milliseconds(value: float) -> str:
    """A duration in the unit that reads well."""
    if value >= 10_000:
        return f"{value / 1000:,.1f} s"
    if value >= 10:
        return f"{value:,.0f} ms"
    return f"{value:.2g} ms"


def shown(value: float | None, unit: str) -> str:
    """A number as people read it; nothing where there is none."""
    if value is None:
        return "-"
    if unit == "%":
        return f"{100 * value:.4g}%"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def as_text(table: Table) -> str:
    """Aligned columns for a terminal."""
    header, rows = table
    everything = [header, *rows]
    widths = _widths(everything)
    lines = []
    for row in everything:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[0] = row[0].ljust(widths[0])
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def as_markdown(table: Table) -> str:
    """A Markdown table."""
    header, rows = table
    lines = ["| " + " | ".join(row) + " |" for row in [header, *rows]]
    lines.insert(1, "|---" + "|---:" * (len(header) - 1) + "|")
    return "\n".join(lines)


def all_and_classes(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The columns of one run's table: all of the load, where it has several classes, then each
    class."""
    classes = dict(result["classes"])
    if len(classes.keys() - {"all", "probe"}) < 2:
        classes.pop("all", None)
    return classes


def bar(share: float, width: int = 24) -> str:
    """A progress bar."""
    full = round(max(0.0, min(1.0, share)) * width)
    return "#" * full + "." * (width - full)


def columns_of(rows: Sequence[Sequence[str]]) -> str:
    """Rows without a header, aligned."""
    widths = _widths(rows)
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells))
    return "\n".join(lines)
