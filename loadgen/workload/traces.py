"""Recorded traces as workloads: Mooncake and vLLM timed_trace (JSON lines), Azure (CSV), veeksha
request_log (both).

| name        | time            | lengths                               | shared prefixes     |
| mooncake    | timestamp, ms   | input_length, output_length           | hash_ids, 512-token |
|             |                 |                                       | blocks              |
| timed_trace | timestamp, s    | input_length, output_length           | hash_ids, 16-token  |
|             |                 |                                       | blocks              |
| azure       | TIMESTAMP, date | ContextTokens, GeneratedTokens        | none                |
| request_log | none, or        | input_length, output_length, or       | none                |
|             | arrived_at      | num_prefill_tokens, num_decode_tokens |                     |

Files may be gzipped. A row may state its own `block_tokens` (the traces that a run of ours leaves
behind do).
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from loadgen.errors import LoadgenError
from loadgen.records import LONG, SHORT, PlannedRequest
from loadgen.workload.lengths import scaled

SAMPLES = {  # shipped with the package, see data/README.md
    "sample:mooncake": "mooncake_conversation_first_600.jsonl.gz",
    "sample:azure": "azure_conv_2023_first_1000.csv.gz",
}
FORMATS = ("mooncake", "timed_trace", "azure", "request_log")
MOONCAKE_BLOCK = 512
TIMED_TRACE_BLOCK = 16


class TraceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a trace is fitted to a machine."""

    format: str = "auto"
    limit: int | None = None  # first so many requests
    scale_input: float = 1.0
    scale_output: float = 1.0
    scale_time: float = 1.0  # 2: half as fast
    long_threshold: int = 8192  # prompts above are "long", in tokens of the trace
    block_tokens: int | None = None  # of timed_trace
    seconds_per_unit: float | None = None  # of timed_trace's timestamps


class Row(msgspec.Struct, frozen=True):
    """One request of a trace, in the trace's own lengths, time in seconds since its first
    request."""

    at: float | None
    input_length: int
    output_length: int
    blocks: tuple[int, ...] = ()
    block_tokens: int = 0
    kind: str | None = None  # our own traces say it


def trace_path(name: str) -> Path:
    """The file that --dataset-path names."""
    if name not in SAMPLES:
        return Path(name)
    return Path(__file__).parent.parent / "data" / SAMPLES[name]


def read_trace(path: Path, options: TraceOptions) -> list[PlannedRequest]:
    """The trace as requests; `at` is None throughout if the trace has no times. Raises
    LoadgenError."""
    rows = list(_limited(_rows(path, options), options.limit))
    if not rows:
        raise LoadgenError(f"{path}: the trace is empty")
    timed = [row.at for row in rows if row.at is not None]
    if timed and len(timed) < len(rows):
        raise LoadgenError(
            f"{path}: only {len(timed)} of {len(rows)} requests have a time"
        )
    first = min(timed, default=0.0)
    if timed:
        rows.sort(key=lambda row: row.at or 0.0)
    return [_planned(index, row, first, options) for index, row in enumerate(rows)]


def _planned(
    index: int, row: Row, first: float, options: TraceOptions
) -> PlannedRequest:
    """Scale one row. Blocks keep their ids and shrink, so that what was shared stays shared, to the
    token."""
    block = scaled(row.block_tokens, options.scale_input) if row.blocks else 0
    if row.blocks and options.scale_input != 1.0:
        whole, rest = divmod(row.input_length, row.block_tokens)
        prompt = max(1, whole * block + min(round(rest * options.scale_input), block))
    else:
        prompt = scaled(row.input_length, options.scale_input)
    return PlannedRequest(
        index=index,
        at=None if row.at is None else (row.at - first) * options.scale_time,
        prompt_tokens=prompt,
        output_tokens=scaled(row.output_length, options.scale_output),
        kind=row.kind or (LONG if row.input_length > options.long_threshold else SHORT),
        blocks=row.blocks[: -(-prompt // block)] if block else (),
        block_tokens=block,
    )


def _limited(rows: Iterable[Row], limit: int | None) -> Iterator[Row]:
    for count, row in enumerate(rows):
        if limit is not None and count >= limit:
            return
        yield row


def _rows(path: Path, options: TraceOptions) -> Iterator[Row]:
    text = _read(path)
    json_lines = text.lstrip()[:1] == "{"
    records = _json_lines(path, text) if json_lines else _csv_lines(path, text)
    name = options.format
    for line, record in records:
        try:
            if name == "auto":
                name = _recognise(record)
            yield _row(name, record, options)
        except (KeyError, TypeError, ValueError) as error:
            reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
            raise LoadgenError(
                f"{path}:{line}: not a request of a {name} trace: {reason}"
            ) from None


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LoadgenError(f"cannot read the trace {path}: {reason}") from None


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    decoder = msgspec.json.Decoder(dict[str, Any])
    # U+2028 ends no line of JSON
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            try:
                yield line, decoder.decode(content)
            except msgspec.DecodeError as error:
                raise LoadgenError(f"{path}:{line}: {error}") from None


def _csv_lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text))
    for record in reader:
        yield reader.line_num, record


def _recognise(record: dict[str, Any]) -> str:
    if "ContextTokens" in record:
        return "azure"
    if "input_length" in record and "timestamp" in record:
        blocks = record.get("hash_ids")
        whole = blocks is None or len(blocks) == -(
            -int(record["input_length"]) // MOONCAKE_BLOCK
        )
        return "mooncake" if whole or "block_tokens" in record else "timed_trace"
    if {"input_length", "num_prefill_tokens"} & record.keys():
        return "request_log"
    known = ", ".join(FORMATS)
    raise ValueError(
        f"unknown format with the fields {', '.join(map(str, record))}; known are {known}"
    )


def _row(name: str, record: dict[str, Any], options: TraceOptions) -> Row:
    if name == "azure":
        at = datetime.fromisoformat(record["TIMESTAMP"]).replace(tzinfo=UTC).timestamp()
        return Row(
            at, _length(record["ContextTokens"]), _length(record["GeneratedTokens"])
        )
    if name == "request_log":
        arrived = record.get("arrived_at")
        prompt = (
            record["input_length"]
            if "input_length" in record
            else record["num_prefill_tokens"]
        )
        output = (
            record["output_length"]
            if "output_length" in record
            else record["num_decode_tokens"]
        )
        return Row(
            None if arrived in (None, "") else float(arrived),
            _length(prompt),
            _length(output),
        )
    mooncake = name == "mooncake"
    unit = 1e-3 if mooncake else options.seconds_per_unit or 1.0
    block = MOONCAKE_BLOCK if mooncake else options.block_tokens or TIMED_TRACE_BLOCK
    return Row(
        float(record["timestamp"]) * unit,
        _length(record["input_length"]),
        _length(record["output_length"]),
        tuple(int(block_id) for block_id in record.get("hash_ids") or ()),
        int(record.get("block_tokens") or block),
        record.get("class"),
    )


def _length(value: Any) -> int:
    """A token count; recorded requests that generated nothing still ask for one token."""
    tokens = int(value)
    if tokens < 0:
        raise ValueError(f"a length of {tokens}")
    return max(1, tokens)
