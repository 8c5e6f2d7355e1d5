"""`report.html`: one page with everything in it (no scripts, nothing fetched); without matplotlib
it has no figures."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from loadgen.judge.health import Health
from loadgen.judge.metrics import RequestMetrics
from loadgen.show import figures
from loadgen.show.pages import embedded, page
from loadgen.show.tables import all_and_classes, milliseconds, split_table


def write_report(
    directory: Path,
    result: Mapping[str, Any],
    requests: list[RequestMetrics],
    health: Health | None,
) -> None:
    """Draw the figures and write the page into a results directory."""
    drawn = (
        figures.draw_run(requests, directory / "metrics") if figures.available() else []
    )
    text = page(
        "report",
        str(result.get("label") or result.get("policy") or directory.name),
        about=_about(result),
        health=health,
        cards=_cards(result),
        pictures=[embedded(caption, path) for caption, path in drawn],
        tables=split_table(all_and_classes(result)),
        errors=result.get("errors", {}),
        config=(directory / "config.yml").read_text(),
    )
    (directory / "report.html").write_text(text)


def _about(result: Mapping[str, Any]) -> str:
    """When, what and how fast."""
    source = "simulated" if result.get("simulated") else "measured"
    rate = result.get("request_rate")
    offered = "arrivals as in the trace or closed loop"
    if isinstance(rate, int | float):
        offered = f"{rate:g} requests/s offered"
    date = datetime.strptime(result["date"], "%Y%m%d-%H%M%S").strftime("%Y-%m-%d %H:%M")
    about = (
        f"{source} {date} UTC · model {result.get('model_id', 'unknown')} · {offered}"
    )
    if result.get("policy"):
        about += f" · policy {result['policy']}"
    return about


def _cards(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures that are looked at first."""
    cards = [
        ("requests completed", f"{result['completed']:,} of {result['num_prompts']:,}"),
        ("duration", f"{result['duration']:.1f} s"),
    ]
    for key, title in (
        ("median_ttft_ms", "TTFT P50"),
        ("p99_ttft_ms", "TTFT P99"),
        ("p99_itl_ms", "TBT P99"),
    ):
        if key in result:
            cards.append((title, milliseconds(result[key])))
    for key, title in (
        ("output_throughput", "generated tokens/s"),
        ("request_goodput", "goodput, requests/s"),
    ):
        if key in result:
            cards.append((title, f"{result[key]:,.4g}"))
    if "attainment" in result:
        cards.append(("met all objectives", f"{100 * result['attainment']:.4g}%"))
    return cards
