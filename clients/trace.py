"""`medha-client trace ID`: why a request was late, as a waterfall. ID: what medha-client printed, a
trace id, x-request-id, the answer's id, or a request's name on the live page.

Needs no tracing backend: the server keeps the timelines of its last requests. `--perfetto FILE`
saves it for https://ui.perfetto.dev.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from clients.client import Client
from clients.errors import ClientError, ProtocolError
from clients.flags import add_server_flags
from clients.terminal import describe

BAR = 40
LINES = 24  # of chunks, about


def parse(arguments: list[str]) -> argparse.Namespace:
    """Without arguments, the help, and exit code 2."""
    parser = argparse.ArgumentParser("medha-client trace", description=__doc__)
    parser.add_argument(
        "id",
        help="what medha-client printed at the end of its answer: a trace id (header "
        "x-medha-trace-id); or x-request-id, the id of an answer, or a name on the live page",
    )
    add_server_flags(parser)
    parser.add_argument(
        "--perfetto",
        type=Path,
        metavar="FILE",
        help="save the timeline as a Perfetto trace",
    )
    if not arguments:
        parser.print_help(sys.stderr)
        parser.exit(2)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Exit code 0, or 1 with one line on stderr."""
    options = parse(arguments)
    try:
        facts, file = asyncio.run(fetch(options))
        if options.perfetto is not None:
            options.perfetto.write_bytes(file)
    except ClientError as error:
        print(f"medha-client: {describe(error)}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"medha-client: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    for timeline in facts:
        print("\n".join(lines(timeline)))
    return 0


async def fetch(options: argparse.Namespace) -> tuple[list[dict[str, Any]], bytes]:
    """The timelines, and the Perfetto file if it is wanted; raises ClientError."""
    path = f"/medha/trace/{quote(options.id, safe='')}"
    async with Client(options.base_url, api_key=options.api_key) as client:
        data = await client.get(f"{path}?format=timeline")
        file = await client.get(path) if options.perfetto is not None else b""
    try:
        return list(msgspec.json.decode(data)["timelines"]), file
    except (msgspec.DecodeError, KeyError, TypeError):
        raise ProtocolError(f"{options.base_url}{path} is no timeline") from None


def lines(timeline: dict[str, Any]) -> list[str]:
    """One request as text: what was promised and what happened, then everything that took time."""
    zero = timeline["arrived_at"]
    rows = sorted(_rows(timeline), key=lambda row: row[0])
    end = max([row[1] for row in rows], default=zero)
    out = [
        f"{timeline['id']}: {timeline['prompt_tokens']} tokens, {timeline['tokens']} generated, "
        f"{_ending(timeline)}"
    ]
    if timeline.get("trace_id"):
        out.append(
            f"trace {timeline['trace_id']}  {timeline.get('ui_url') or ''}".rstrip()
        )
    for name in ("ttft", "tpot"):
        value = timeline[f"{name}_s"]
        objective = timeline[f"{name}_objective_s"]
        met = "missed" if name in timeline["missed"] else "met"
        measured = "-" if value is None else _time(value)
        out.append(f"{name.upper()} {measured}, objective {_time(objective)}: {met}")
    for start, until, text in rows:
        bar = _bar(start, until, zero, end)
        out.append(f"{start - zero:9.3f} s {_time(until - start):>9} {bar} {text}")
    return out


def runs(
    chunks: list[dict[str, Any]], gaps: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Neighbouring chunks that nothing interrupted as one, where there are too many to show."""
    most = -(-len(chunks) // LINES)
    joined: list[dict[str, Any]] = []
    pieces = 0
    for chunk in chunks:
        last = joined[-1] if joined else None
        apart = last is None or any(
            last["sent_at"] <= gap["from_at"] <= chunk["sent_at"] for gap in gaps
        )
        if (
            last is None
            or apart
            or pieces == most
            or last["actual_s"] is None
            or chunk["actual_s"] is None
        ):
            joined.append(dict(chunk))
            pieces = 1
            continue
        pieces += 1
        for name in ("count", "tokens", "predicted_s", "actual_s"):
            last[name] += chunk[name]
        last["done_at"] = chunk["done_at"]
    return joined


def turns(gaps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Gaps that one request after another took in alternation, as one for each of them, where there
    are too many."""
    if len(gaps) <= LINES // 2:
        return gaps
    joined: list[dict[str, Any]] = []
    for gap in gaps:
        last = joined[-1] if joined else None
        if last is None or (last["kind"], last["by"]) != (gap["kind"], gap["by"]):
            joined.append(dict(gap))
            continue
        for name in ("count", "gap_s"):
            last[name] += gap[name]
        last["until_at"] = gap["until_at"]
    return joined


def _rows(timeline: dict[str, Any]) -> list[tuple[float, float, str]]:
    """(start, end, what) of everything that took time."""
    chunks = timeline["chunks"]
    last = timeline["last_token_at"] or timeline["arrived_at"]
    end = timeline["finished_at"] or last
    first = chunks[0]["sent_at"] if chunks else end
    rows = [
        (
            timeline["arrived_at"],
            timeline["queued_at"],
            "ingress: body, tokenizer, hand-over",
        ),
        (timeline["queued_at"], first, "queue"),
    ]
    gaps = turns(timeline["gaps"])
    for chunk in runs(chunks, gaps):
        last_index = chunk["index"] + chunk["count"] - 1
        name = f"chunk {chunk['index']}"
        if chunk["count"] > 1:
            name = f"chunks {chunk['index']}..{last_index}"
        took = (
            "in flight"
            if chunk["actual_s"] is None
            else f"took {_time(chunk['actual_s'])}"
        )
        text = (
            f"{name}: {chunk['tokens']} tokens from {chunk['start']} on, predicted "
            f"{_time(chunk['predicted_s'])}"
        )
        text += f", {took}, slack {_time(chunk['slack_before_s'])}"
        rows.append((chunk["sent_at"], chunk["done_at"] or end, text))
    for gap in gaps:
        text = f"{gap['kind']} by {gap['by'] or '-'}"
        if gap["count"] > 1:
            text += f" ({gap['count']} times, waited {_time(gap['gap_s'])})"
        rows.append((gap["from_at"], gap["until_at"] or end, text))
    if timeline["first_token_at"] is not None:
        longest = _time(timeline["largest_gap_s"])
        text = f"decode: {timeline['tokens']} tokens, longest gap {longest}"
        text += f", {timeline['stalls_total']} stalls"
        rows.append((timeline["first_token_at"], end, text))
    return rows


def _ending(timeline: dict[str, Any]) -> str:
    text = timeline["reason"] or "not finished"
    return f"{text} ({timeline['message']})" if timeline["message"] else str(text)


def _bar(start: float, until: float, zero: float, end: float) -> str:
    scale = BAR / max(end - zero, 1e-9)
    before = min(BAR - 1, int((start - zero) * scale))
    length = max(1, min(BAR - before, round((until - start) * scale)))
    return (" " * before + "█" * length).ljust(BAR)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if abs(seconds) >= 1 else f"{seconds * 1000:.1f} ms"
