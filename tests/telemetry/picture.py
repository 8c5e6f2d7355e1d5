"""`python tests/telemetry/picture.py docs/images/trace.png`: the picture of a real trace in
docs/tracing.md.

Starts the server with the embedded model, sends it a long prompt with short ones behind it, reads
the long one's trace back from a real OTLP receiver, and draws it as a tracing backend would.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

import aiohttp
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from receivers import HttpReceiver, children, facts

sys.path.append(str(Path(__file__).parent.parent / "system"))
from serve_process import free_port, serving

TRACE = "0af7651916cd43dd8448eb211c80319c"
PROMPT = 2400
SHORT = 300
SHORTS_AT = (0.2, 0.6)  # shares of the long prompt at which short ones arrive
COLOURS = {
    "stage[0]": "#3f76c9",
    "stage[1]": "#2a9d8f",
    "prefill.chunk": "#c3cfe2",
    "preempted": "#dd5a45",
    "decode": "#57a05a",
    "POST": "#475467",
}
SOFT = "#8a94a3"
TEXT = "#1c2430"
OTHERS = "#98a2b3"


async def convoy(url: str) -> None:
    """One long prompt, and short ones that arrive while it is prefilled."""
    async with aiohttp.ClientSession() as session:
        await _complete(session, url, SHORT, 4)  # warms up
        body = _body(PROMPT, 24) | {"stream": True}
        headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
        behind = list(SHORTS_AT)
        shorts = []
        async with session.post(
            f"{url}/v1/completions", json=body, headers=headers
        ) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.startswith(b": progress") and behind:
                    done = int(line.split()[2].split(b"/")[0])
                    if done >= behind[0] * PROMPT:
                        behind.pop(0)
                        shorts.append(
                            asyncio.ensure_future(_complete(session, url, SHORT, 2))
                        )
        await asyncio.gather(*shorts)


def _body(prompt: int, tokens: int) -> dict[str, Any]:
    return {
        "model": "medha",
        "prompt": [100 + i % 1000 for i in range(prompt)],
        "max_tokens": tokens,
        "ignore_eos": True,
    }


async def _complete(
    session: aiohttp.ClientSession, url: str, prompt: int, tokens: int
) -> None:
    async with session.post(
        f"{url}/v1/completions", json=_body(prompt, tokens)
    ) as answer:
        answer.raise_for_status()
        await answer.read()


def rows(spans: list[Span]) -> list[tuple[int, Span]]:
    """(depth, span) in the order of a tracing backend: parents before children, by start."""
    (root,) = [span for span in spans if span.name.startswith("POST")]
    found: list[tuple[int, Span]] = []

    def visit(span: Span, depth: int) -> None:
        found.append((depth, span))
        for child in children(spans, span):
            visit(child, depth + 1)

    visit(root, 0)
    return found


def told(span: Span) -> str:
    """What a span says of itself, in a few words."""
    fact = facts(span)
    if span.name.startswith("POST"):
        met = (
            "objectives met"
            if fact["slo_met"]
            else f"missed: {', '.join(fact['medha.objectives_missed'])}"
        )
        return (
            f"first token {_time(fact['medha.ttft_s'])} of "
            f"{_time(fact['medha.ttft_objective_s'])}, {met}"
        )
    if span.name.startswith("prefill.chunk"):
        took = f"predicted {_time(fact['predicted_s'])}, took {_time(fact['actual_s'])}"
        return f"{fact['tokens']} tokens, {took}, slack {_time(fact['slack_before_s'])}"
    if span.name == "prefill":
        chunks = f"{fact['chunks']} chunks, {fact['preemptions']} preemptions"
        return f"{fact['tokens']} tokens, {chunks}"
    if span.name == "preempted":
        return f"by {fact['by'][:13]}…, waited {_time(fact['waited_s'])}"
    if span.name == "decode":
        return (
            f"{fact['tokens']} tokens, largest gap {_time(fact['largest_gap_s'])}, "
            f"{fact['stalls']} stalls"
        )
    return (
        ""
        if span.name.startswith("stage")
        else _time((span.end_time_unix_nano - span.start_time_unix_nano) / 1e9)
    )


def _time(seconds: float) -> str:
    if abs(seconds) < 0.01:
        return f"{seconds * 1000:.1f} ms"
    return f"{seconds:.2f} s" if abs(seconds) >= 1 else f"{seconds * 1000:.0f} ms"


def draw(spans: list[Span], path: Path) -> None:
    """The tree as a waterfall: names, bars, and what each span says."""
    lines = rows(spans)
    zero = lines[0][1].start_time_unix_nano
    end = (lines[0][1].end_time_unix_nano - zero) / 1e9
    figure, axes = plt.subplots(figsize=(5.4, 0.165 * len(lines)))
    for line, (depth, span) in enumerate(lines):
        _row(axes, line, depth, span, zero, end / 250)
    axes.set(xlim=(0, end), ylim=(len(lines) - 0.3, -0.7), yticks=[])
    axes.xaxis.set_major_formatter("{x:g} s")
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", length=0, labelsize=7.5, labelcolor=SOFT)
    axes.grid(axis="x", color="#e6e9ee", linewidth=0.7)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.savefig(
        path, dpi=160, bbox_inches="tight", pad_inches=0.12, facecolor="white"
    )


def _row(
    axes: Axes, line: int, depth: int, span: Span, zero: int, thinnest_s: float
) -> None:
    start, end = (
        (at - zero) / 1e9 for at in (span.start_time_unix_nano, span.end_time_unix_nano)
    )
    colour = next(
        (value for name, value in COLOURS.items() if span.name.startswith(name)), OTHERS
    )
    stage = span.name.startswith("stage")
    beside = axes.get_yaxis_transform()
    if not stage and depth < 3:
        axes.axhline(
            line - 0.5,
            color="#eef0f3",
            linewidth=0.7,
            xmin=-0.42,
            xmax=1.75,
            clip_on=False,
            zorder=0,
        )
    axes.barh(
        line,
        max(end - start, thinnest_s),
        left=start,
        height=0.5 if stage else 0.68,
        color=colour,
    )
    axes.text(
        -0.42 + 0.025 * depth,
        line,
        span.name,
        transform=beside,
        va="center",
        fontsize=7.5,
        color=SOFT if stage else TEXT,
    )
    axes.text(
        1.02,
        line,
        told(span),
        transform=beside,
        va="center",
        fontsize=7.5,
        color=COLOURS["preempted"] if span.name == "preempted" else SOFT,
    )
    for event in span.events:
        mark = TEXT if event.name == "first_token" else COLOURS["preempted"]
        axes.plot(
            (event.time_unix_nano - zero) / 1e9,
            line,
            marker="|",
            color=mark,
            markersize=8,
        )


def traced() -> list[Span]:
    """The spans of the long prompt's trace, as the receiver got them."""
    receiver = HttpReceiver(free_port())
    args = {
        "model_loading_config": {"model_source": "embedded", "model_id": "medha"},
        "parallel": {"spp": 2},
        "scheduler": {"batch_budget_s": 0.4},
        "stream": {"progress_s": 0.01, "first_comment_s": 0.0},
        "telemetry": {
            "tracing": {"exporter": "otlp_http", "endpoint": receiver.endpoint}
        },
    }
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            serving(Path(folder), **args) as (url, _),
        ):
            asyncio.run(convoy(url))
            # They come one by one, in the order in which they were made; this is the last.
            return receiver.wait(
                TRACE, lambda spans: any(span.name == "decode" for span in spans)
            )
    finally:
        receiver.close()


if __name__ == "__main__":
    draw(traced(), Path(sys.argv[1]))
