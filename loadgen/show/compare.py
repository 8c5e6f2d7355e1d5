"""`medha-loadgen compare DIR DIR...`: several runs in one table and one figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from loadgen.errors import LoadgenError
from loadgen.judge.metrics import RequestMetrics
from loadgen.show import figures
from loadgen.show.layout import request_of_row
from loadgen.show.output import claim_directory
from loadgen.show.pages import embedded, page
from loadgen.show.tables import Table, as_markdown, class_table

# class, metric, and which figure of it
_DECISIVE = (
    ("short", "ttft", "median"),
    ("short", "ttft", "p99"),
    ("long", "ttft", "median"),
    ("long", "ttft", "p99"),
    ("all", "itl", "p99"),
    ("all", "output_throughput", ""),
    ("all", "attainment", ""),
)


class LoadedRun(msgspec.Struct, frozen=True):
    """A results directory, read back."""

    name: str
    result: dict[str, Any]
    requests: list[RequestMetrics]


def read_run(directory: Path) -> LoadedRun:
    """Raises LoadgenError if this is no results directory of ours."""
    rows_file = directory / "metrics" / "request_level_metrics.jsonl"
    try:
        result = msgspec.json.decode(
            (directory / "result.json").read_bytes(), type=dict[str, Any]
        )
        rows = [
            msgspec.json.decode(line) for line in rows_file.read_bytes().splitlines()
        ]
        requests = [request_of_row(row) for row in rows]
        result["classes"]["all"]
    except OSError as error:
        raise LoadgenError(
            f"{directory} is no results directory: {error.filename}: {error.strerror}"
        ) from None
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise LoadgenError(
            f"{directory} is no results directory of medha-loadgen: {error}"
        ) from None
    name = str(result.get("label") or result.get("policy") or directory.resolve().name)
    return LoadedRun(name, result, requests)


def read_runs(directories: Sequence[Path]) -> list[LoadedRun]:
    """At least two, with names of their own."""
    if len(directories) < 2:
        raise LoadgenError("compare needs at least two results directories")
    runs = [read_run(directory) for directory in directories]
    names = [run.name for run in runs]
    paths = [str(directory) for directory in directories]
    unique = [
        name if names.count(name) == 1 else path
        for name, path in zip(names, paths, strict=True)
    ]
    if len(set(unique)) < len(unique):
        unique = [f"{index}: {name}" for index, name in enumerate(unique, start=1)]
    return [
        msgspec.structs.replace(run, name=name)
        for run, name in zip(runs, unique, strict=True)
    ]


def tables(runs: Sequence[LoadedRun]) -> list[tuple[str, Table]]:
    """How the runs relate to the first one, then a table per class, runs side by side."""
    titled = [(f"Relative to {runs[0].name}", relative(runs))]
    kinds: dict[str, None] = {}  # a set in the order of appearance
    for run in runs:
        kinds |= dict.fromkeys(run.result["classes"])
    of_load = [kind for kind in kinds if kind not in ("all", "probe")]
    for kind in kinds:
        if kind == "all" and len(of_load) < 2:
            continue
        columns = {run.name: run.result["classes"].get(kind, {}) for run in runs}
        titled.append((f"{kind} requests", class_table(columns)))
    return titled


def relative(runs: Sequence[LoadedRun]) -> Table:
    """The figures that decide, as multiples of the first run's."""
    header = ["", *(run.name for run in runs)]
    rows = []
    for kind, metric, name in _DECISIVE:
        values = [_figure(run, kind, metric, name) for run in runs]
        first = values[0]
        if first:
            shown = [
                "-" if value is None else f"{value / first:.3g}x" for value in values
            ]
            what = (
                metric.replace("itl", "TBT").replace("ttft", "TTFT").replace("_", " ")
            )
            which = name.replace("median", "p50").upper()
            rows.append([f"{kind}: {what} {which}".strip(), *shown])
    return header, rows


def _figure(run: LoadedRun, kind: str, metric: str, name: str) -> float | None:
    value = run.result["classes"].get(kind, {}).get(metric)
    return value.get(name) if isinstance(value, dict) else value


def warnings(runs: Sequence[LoadedRun]) -> list[str]:
    """What makes the comparison doubtful."""
    doubts = []
    for run in runs:
        if run.result["health"] != "PASSED":
            doubts.append(f"{run.name}: the load generator's health check failed")
    for key in ("num_prompts", "request_rate", "seed", "model_id"):
        values = {str(run.result.get(key)) for run in runs}
        if len(values) > 1:
            doubts.append(f"the runs differ in {key}: {', '.join(sorted(values))}")
    return doubts


def write_comparison(runs: Sequence[LoadedRun], directory: Path) -> None:
    """compare.md, compare.png and compare.html in a new directory."""
    claim_directory(directory)
    found = [(title, table) for title, table in tables(runs) if table[1]]
    doubts = warnings(runs)
    lines = [f"> {doubt}\n" for doubt in doubts]
    lines += [f"## {title}\n\n{as_markdown(table)}\n" for title, table in found]
    (directory / "compare.md").write_text("\n".join(lines))
    pictures = []
    if figures.available():
        picture = directory / "compare.png"
        figures.draw_comparison({run.name: run.requests for run in runs}, picture)
        pictures.append(embedded("Share of requests at or below a latency", picture))
    text = page("compare", "Comparison", doubts=doubts, pictures=pictures, tables=found)
    (directory / "compare.html").write_text(text)
