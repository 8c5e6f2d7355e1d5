"""`python tests/telemetry/picture.py docs/images/trace.png`: the picture of a real trace in docs/tracing.md.

Starts the server with the embedded model, sends it a long prompt with short ones behind it, reads the long one's trace
back from a real OTLP receiver, and draws it as a tracing backend would.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import aiohttp
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from receivers import HttpReceiver, children, facts

sys.path.append(str(Path(__file__).parent.parent / "system"))
from serve_process import free_port, serving

TRACE = "0af7651916cd43dd8448eb211c80319c"
PROMPT, SHORT, SHORTS, EVERY_S = 3000, 300, 5, 0.55
COLOURS = {"stage[0]": "#4c78a8", "stage[1]": "#72b7b2", "prefill.chunk": "#b9c6d8", "preempted": "#e45756",
           "decode": "#54a24b", "POST": "#555555", "prefill": "#8f9bb3"}  # fmt: skip


async def convoy(url: str) -> None:
    """One long prompt, and short ones that arrive while it is prefilled."""

    async def complete(session: aiohttp.ClientSession, prompt: int, tokens: int, trace: str | None = None) -> None:
        body = {"model": "medha", "prompt": [100 + i % 1000 for i in range(prompt)], "max_tokens": tokens}
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"} if trace else {}
        async with session.post(f"{url}/v1/completions", json={**body, "ignore_eos": True}, headers=headers) as answer:
            answer.raise_for_status()
            await answer.read()

    async with aiohttp.ClientSession() as session:
        await complete(session, SHORT, 4)
        work = [asyncio.ensure_future(complete(session, PROMPT, 24, TRACE))]
        for _ in range(SHORTS):
            await asyncio.sleep(EVERY_S)
            work.append(asyncio.ensure_future(complete(session, SHORT, 8)))
        await asyncio.gather(*work)


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
        met = "met" if fact["slo_met"] else f"missed: {', '.join(fact['medha.objectives_missed'])}"
        return f"TTFT {fact['medha.ttft_s']:.2f} s of {fact['medha.ttft_objective_s']:.2f} s, objectives {met}"
    if span.name.startswith("prefill.chunk"):
        took = f"predicted {fact['predicted_s'] * 1e3:.0f} ms, took {fact['actual_s'] * 1e3:.0f} ms"
        return f"{fact['tokens']} tokens after {fact['start']}, {took}, slack {fact['slack_before_s']:.2f} s"
    if span.name == "prefill":
        return f"{fact['tokens']} tokens in {fact['chunks']} chunks, preempted {fact['preemptions']} times"
    if span.name == "preempted":
        return f"by {fact['by']}, waited {fact['waited_s'] * 1e3:.0f} ms"
    if span.name == "decode":
        return f"{fact['tokens']} tokens, largest gap {fact['largest_gap_s'] * 1e3:.0f} ms, {fact['stalls']} stalls"
    return ""


def draw(spans: list[Span], path: Path) -> None:
    """The tree as a waterfall."""
    lines = rows(spans)
    zero = lines[0][1].start_time_unix_nano
    figure, axes = plt.subplots(figsize=(13, 0.21 * len(lines) + 0.9))
    for line, (depth, span) in enumerate(lines):
        _bar(axes, line, depth, span, zero)
    end = (lines[0][1].end_time_unix_nano - zero) / 1e9
    axes.set(xlim=(0, end * 1.55), ylim=(len(lines) - 0.4, -0.8), yticks=[], xlabel="seconds since the request arrived")
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= end])
    axes.grid(axis="x", color="#e8e8e8", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def _bar(axes: Axes, line: int, depth: int, span: Span, zero: int) -> None:
    start, end = ((at - zero) / 1e9 for at in (span.start_time_unix_nano, span.end_time_unix_nano))
    colour = next((value for name, value in COLOURS.items() if span.name.startswith(name)), "#999999")
    height = 0.42 if span.name.startswith("stage") else 0.72
    axes.barh(line, max(end - start, 0.004), left=start, height=height, color=colour)
    axes.text(-0.30 + 0.012 * depth, line, span.name, transform=axes.get_yaxis_transform(), va="center", fontsize=7.5,
              color="#888888" if span.name.startswith("stage") else "#222222")  # fmt: skip
    axes.text(end, line, f"  {told(span)}", va="center", fontsize=6.8, color="#444444")
    for event in span.events:
        axes.plot(
            (event.time_unix_nano - zero) / 1e9, line, "k|" if event.name == "first_token" else "r|", markersize=8
        )


def main() -> None:
    receiver = HttpReceiver(free_port())
    args = {
        "model_loading_config": {"model_source": "embedded", "model_id": "medha"},
        "parallel": {"spp": 2},
        "scheduler": {"batch_budget_s": 0.2},
        "telemetry": {"tracing": {"exporter": "otlp_http", "endpoint": receiver.endpoint}},
    }
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), **args) as (url, _):
        asyncio.run(convoy(url))
        spans = receiver.wait(TRACE, lambda spans: any(span.name.startswith("POST") for span in spans))
    draw(spans, Path(sys.argv[1]))
    receiver.close()


if __name__ == "__main__":
    main()
