"""What a search came to: a line, a table, and the files of its results directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from loadgen.capacity.search import CapacityFound, Trial
from loadgen.options import RunOptions
from loadgen.show import figures
from loadgen.show.pages import embedded, page
from loadgen.show.tables import as_text, shown


def summary(outcome: CapacityFound) -> str:
    """One line."""
    if outcome.best is None:
        return "the objectives held at no rate that was tried"
    text = f"capacity: {outcome.best:.4g} requests/s hold the objectives"
    if outcome.failed is not None:
        text += f", they fail at {outcome.failed:.4g}"
    else:
        text += ", the highest rate allowed"
    if not outcome.complete:
        text += " (search cut short)"
    if any(trial.doubtful for trial in outcome.trials):
        text += "; doubtful: the load generator itself was late"
    return text


def table_of(outcome: CapacityFound) -> tuple[list[str], list[list[str]]]:
    """The trials, by rate."""
    header = [
        "requests/s",
        "met objectives",
        "verdict",
        "TTFT P50, ms",
        "TTFT P99, ms",
        "TBT P99, ms",
        "tokens/s",
    ]
    rows = []
    for trial in sorted(outcome.trials, key=lambda trial: trial.rate):
        ttft = trial.figures.get("ttft", {})
        gaps = trial.figures.get("itl", {})
        numbers = (
            ttft.get("p50", ttft.get("median")),
            ttft.get("p99"),
            gaps.get("p99"),
        )
        speed = trial.figures.get("output_throughput")
        verdict = "holds" if trial.holds else "fails"
        rows.append(
            [
                f"{trial.rate:.4g}",
                met(trial),
                verdict,
                *(shown(n, "") for n in (*numbers, speed)),
            ]
        )
    return header, rows


def met(trial: Trial) -> str:
    """The share of the requests that met their objectives."""
    return ("at most " if trial.cut_short else "") + shown(trial.attainment, "%")


def write_outcome(outcome: CapacityFound, options: RunOptions, directory: Path) -> None:
    """capacity.json, capacity.png, capacity.txt and report.html."""
    judgement = options.judgement
    content: dict[str, Any] = {
        "capacity": outcome.best,
        "failed_at": outcome.failed,
        "complete": outcome.complete,
        "attainment": judgement.attainment,
        "goodput": judgement.goodput,
        "goodput_long": judgement.goodput_long,
        "policy": options.watch.policy,
        "trials": [msgspec.to_builtins(trial) for trial in outcome.trials],
    }
    (directory / "capacity.json").write_text(json.dumps(content, indent=2) + "\n")
    header, rows = table_of(outcome)
    pictures = []
    if figures.available() and outcome.trials:
        picture = directory / "capacity.png"
        rates = [trial.rate for trial in outcome.trials]
        shares = [trial.attainment for trial in outcome.trials]
        figures.draw_capacity(
            rates, shares, judgement.attainment, outcome.best, picture
        )
        pictures.append(embedded("Share of requests that met all objectives", picture))
    told = summary(outcome)
    text = page(
        "capacity",
        "Capacity",
        summary=told,
        header=header,
        rows=rows,
        pictures=pictures,
    )
    (directory / "report.html").write_text(text)
    (directory / "capacity.txt").write_text(f"{told}\n\n{as_text((header, rows))}\n")
