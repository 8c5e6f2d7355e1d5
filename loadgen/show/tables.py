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
    ("request_throughput", "Requests/s", ""),
    ("output_throughput", "Generated tokens/s", ""),
    ("total_token_throughput", "All tokens/s", ""),
    ("request_goodput", "Goodput, requests/s", ""),
    ("attainment", "Met all objectives", "%"),
    ("fluidity_index", "Fluidity index", ""),
    ("deadline_miss_rate", "Token deadlines missed", "%"),
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
            if key != "cancelled" or any(figures.get(key) for figures in columns.values()):
                counts.append([title, *cells])
    latencies = []
    for key, title, unit in _LATENCIES:
        names = [name for figures in columns.values() for name in figures.get(key, {})]
        for name in dict.fromkeys(names):
            if name in ("mean", "max") or name.startswith("p"):
                label = f"{title} {name.upper() if name.startswith('p') else name}" + (
                    f", {unit}" if unit else ""
                )
                latencies.append(
                    [
                        label,
                        *(
                            shown(figures.get(key, {}).get(name), "")
                            for figures in columns.values()
                        ),
                    ]
                )
    return (["", *columns], counts), (["", *columns], latencies)


def milliseconds(value: float) -> str:
    """A duration in the unit that reads well."""
    return (
        f"{value / 1000:,.1f} s"
        if value >= 10_000
        else f"{value:,.0f} ms"
        if value >= 10
        else f"{value:.2g} ms"
    )


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
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for row in [header, *rows]:
        sized = zip(row, widths, strict=True)
        cells = [
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(sized)
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


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
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
