"""`report.html`: one page with everything in it (no scripts, nothing fetched); without matplotlib
it has no figures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from loadgen.judge.health import Health
from loadgen.judge.metrics import RequestMetrics
from loadgen.show import figures
from loadgen.show.tables import Table, all_and_classes, milliseconds, split_table

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; background: #fff; margin: 0 auto;
  padding: 1.5rem 2rem; max-width: 1180px; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
p { margin: .3rem 0; } .quiet { color: #5a6675; }
.badge { display: inline-block; padding: .1rem .6rem; border-radius: .3rem; font-weight: 600;
  color: #fff; }
.PASSED { background: #006b4f; } .FAILED { background: #b03a00; } .NOTE { background: #7a5c00; }
.SKIPPED { background: #66707c; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.card { border: 1px solid #d5dbe2; border-radius: .4rem; padding: .6rem 1rem; min-width: 8.5rem; }
.card b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .9rem; text-align: right; border-bottom: 1px solid #e3e7ec; }
th:first-child, td:first-child { text-align: left; padding-left: .2rem; }
thead th { border-bottom: 2px solid #aab4bf; }
.figures { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)); }
.tables { display: flex; flex-wrap: wrap; gap: 1rem 3rem; align-items: flex-start; }
.tables > *, .wide { max-width: 100%; }
.wide { overflow-x: auto; }
td.text { text-align: left; }
figure { margin: 0; border: 1px solid #d5dbe2; border-radius: .4rem; padding: .5rem; }
figure img { width: 100%; height: auto; } figcaption { color: #5a6675; padding: 0 .4rem .2rem; }
pre { background: #f4f6f8; padding: .8rem 1rem; overflow-x: auto; border-radius: .4rem;
  font-size: 13px; }
@media (max-width: 600px) { body { padding: 1rem; } figure { padding: .2rem; }
  th, td { padding: .22rem .5rem; } .card { flex: 1 0 40%; padding: .5rem .7rem; } }
"""


def write_report(
    directory: Path,
    result: Mapping[str, Any],
    requests: list[RequestMetrics],
    health: Health | None,
) -> None:
    """Draw the figures and write the page into a results directory."""
    drawn = figures.draw_run(requests, directory / "metrics") if figures.available() else []
    title = str(result.get("label") or result.get("policy") or directory.name)
    config = (directory / "config.yml").read_text()
    parts_of_table = split_table(all_and_classes(result))
    by_class = "".join(html_table(part) for part in parts_of_table)
    parts = [
        _head(title, result, health),
        _cards(result),
        _figures(drawn),
        "<h2>Results by class</h2>",
        f'<div class="tables">{by_class}</div>',
        _errors(result.get("errors", {})),
        _health(health),
        f"<h2>Configuration</h2><pre>{escape(config)}</pre>",
    ]
    (directory / "report.html").write_text(page(title, parts))


def page(title: str, parts: Sequence[str]) -> str:
    """A whole HTML document."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}{view}</head>\n'
        f"<body>\n{body}\n</body></html>\n"
    )


def html_table(table: Table) -> str:
    """A table; the first column is the row's name."""
    header, rows = table
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    lines = []
    for row in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    head = f"<thead><tr>{top}</tr></thead>"
    return f'<div class="wide"><table>{head}<tbody>{"".join(lines)}</tbody></table></div>'


def embedded(path: Path, caption: str) -> str:
    """A picture inside the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    text = escape(caption)
    picture = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    return f"<figure>{picture}<figcaption>{text}</figcaption></figure>"


def _head(title: str, result: Mapping[str, Any], health: Health | None) -> str:
    source = "simulated" if result.get("simulated") else "measured"
    rate = result.get("request_rate")
    offered = "arrivals as in the trace or closed loop"
    if isinstance(rate, int | float):
        offered = f"{rate:g} requests/s offered"
    date = datetime.strptime(result["date"], "%Y%m%d-%H%M%S").strftime("%Y-%m-%d %H:%M")
    about = f"{source} {date} UTC · model {result.get('model_id', 'unknown')} · {offered}"
    if result.get("policy"):
        about += f" · policy {result['policy']}"
    lines = [f"<h1>{escape(title)}</h1>", f'<p class="quiet">{escape(about)}</p>']
    if health is not None:
        mark = "PASSED" if health.passed else "FAILED"
        text = "" if health.passed else f" {health.verdict.removeprefix('FAILED: ')}"
        lines.append(f"<p>Load generator's own health: {_badge(mark)}{escape(text)}</p>")
    return "\n".join(lines)


def _cards(result: Mapping[str, Any]) -> str:
    """The figures that are looked at first."""
    figures_first = [
        ("requests completed", f"{result['completed']:,} of {result['num_prompts']:,}"),
        ("duration", f"{result['duration']:.1f} s"),
    ]
    for key, title in (
        ("median_ttft_ms", "TTFT P50"),
        ("p99_ttft_ms", "TTFT P99"),
        ("p99_itl_ms", "TBT P99"),
    ):
        if key in result:
            figures_first.append((title, milliseconds(result[key])))
    for key, title in (
        ("output_throughput", "generated tokens/s"),
        ("request_goodput", "goodput, requests/s"),
    ):
        if key in result:
            figures_first.append((title, f"{result[key]:,.4g}"))
    if "attainment" in result:
        figures_first.append(("met all objectives", f"{100 * result['attainment']:.4g}%"))
    cards = "".join(f"<div class=card><b>{value}</b>{name}</div>" for name, value in figures_first)
    return f'<div class="cards">{cards}</div>'


def _badge(mark: str) -> str:
    """PASSED, FAILED, NOTE or SKIPPED, in its colour."""
    return f'<span class="badge {mark}">{mark}</span>'


def _errors(errors: Mapping[str, int]) -> str:
    if not errors:
        return ""
    rows = [[text, str(count)] for text, count in errors.items()]
    return "<h2>Errors</h2>" + html_table((["message", "requests"], rows))


def _figures(drawn: Sequence[tuple[str, Path]]) -> str:
    if not drawn:
        return (
            '<p class="quiet">No figures: matplotlib is not installed '
            '(pip install "medha-on-ray[report]").</p>'
        )
    return (
        f'<div class="figures">{"".join(embedded(path, caption) for caption, path in drawn)}</div>'
    )


def _health(health: Health | None) -> str:
    if health is None:
        return ""
    rows = []
    for check in health.checks:
        text = escape(check.summary)
        if check.advice:
            text += f"<br><b>What to do:</b> {escape(check.advice)}"
        badge = _badge(check.result)
        name = escape(check.title)
        rows.append(f'<tr><td>{name}</td><td>{badge}</td><td class="text">{text}</td></tr>')
    table = f'<div class="wide"><table><tbody>{"".join(rows)}</tbody></table></div>'
    return f"<h2>Health of the load generator</h2>{table}"
