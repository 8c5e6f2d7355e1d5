"""Traces of all formats, fitted to a machine, and clear words for broken ones."""

import gzip
import json

import pytest

from loadgen.errors import LoadgenError
from loadgen.workload.traces import TraceOptions, read_trace, trace_path
from tests.loadgen.made import plan_of

MOONCAKE = [
    {
        "timestamp": 27000,
        "input_length": 1100,
        "output_length": 52,
        "hash_ids": [0, 1, 2],
    },
    {"timestamp": 30000, "input_length": 1000, "output_length": 26, "hash_ids": [0, 5]},
]


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_mooncake_with_blocks(tmp_path):
    one, two = read_trace(
        lines(tmp_path / "t.jsonl", MOONCAKE), TraceOptions(long_threshold=1050)
    )
    assert (one.at, two.at) == (0.0, 3.0)
    assert (one.prompt_tokens, one.output_tokens, one.blocks, one.block_tokens) == (
        1100,
        52,
        (0, 1, 2),
        512,
    )
    assert (one.kind, two.kind) == ("long", "short")


def test_only_newlines_end_a_line(tmp_path):
    row = MOONCAKE[0] | {"note": "one\u2028two\x85three"}
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert len(read_trace(path, TraceOptions())) == 1


def test_scaling_keeps_shared_blocks_shared(tmp_path):
    options = TraceOptions(scale_input=0.1, scale_output=0.5, scale_time=2.0)
    one, two = read_trace(lines(tmp_path / "t.jsonl", MOONCAKE), options)
    assert two.at == 6.0
    assert one.block_tokens == two.block_tokens == 51
    # two whole blocks and a tenth of the 76 tokens left
    assert one.prompt_tokens == 2 * 51 + 8
    assert two.prompt_tokens == 51 + 49
    assert (one.blocks, two.blocks) == ((0, 1, 2), (0, 5))
    assert one.output_tokens == 26


def test_gzip_limit_and_order(tmp_path):
    rows = [MOONCAKE[1], MOONCAKE[0], MOONCAKE[1]]
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert [request.at for request in read_trace(path, TraceOptions(limit=2))] == [
        0.0,
        3.0,
    ]


def test_azure(tmp_path):
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,0\n"
    )
    one, two = read_trace(path, TraceOptions())
    assert (one.prompt_tokens, one.output_tokens) == (374, 44)
    assert two.at == pytest.approx(4.314579, abs=1e-5)
    assert two.output_tokens == 1


def test_timed_trace_is_told_from_mooncake_by_its_blocks(tmp_path):
    path = lines(
        tmp_path / "t.jsonl",
        [
            {
                "timestamp": 1.5,
                "input_length": 40,
                "output_length": 3,
                "hash_ids": [7, 8, 9],
            }
        ],
    )
    (request,) = read_trace(path, TraceOptions())
    assert (request.block_tokens, request.blocks) == (16, (7, 8, 9))
    (request,) = read_trace(
        path,
        TraceOptions(format="timed_trace", block_tokens=20, seconds_per_unit=0.001),
    )
    assert (request.block_tokens, request.blocks) == (20, (7, 8))


def test_request_log_takes_the_given_rate(tmp_path):
    rows = [
        {"input_length": 512, "output_length": 128},
        {"input_length": 1024, "output_length": 256},
    ]
    path = lines(tmp_path / "log.jsonl", rows)
    assert [request.at for request in read_trace(path, TraceOptions())] == [None, None]
    plan = plan_of(dataset_path=str(path), request_rate=1.0, arrival="fixed")
    assert [request.at for request in plan.requests] == [1.0, 2.0]
    csv = tmp_path / "log.csv"
    csv.write_text(
        "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,10,5\n2.5,11,6\n"
    )
    assert [
        (request.at, request.prompt_tokens)
        for request in read_trace(csv, TraceOptions())
    ] == [
        (0.0, 10),
        (2.0, 11),
    ]


def test_a_rate_or_a_closed_loop_replaces_the_times_of_a_trace(tmp_path):
    path = str(lines(tmp_path / "t.jsonl", MOONCAKE))
    assert [r.at for r in plan_of(dataset_path=path).requests] == [0.0, 3.0]
    assert [
        r.at
        for r in plan_of(dataset_path=path, request_rate=1, arrival="fixed").requests
    ] == [
        1.0,
        2.0,
    ]
    assert plan_of(dataset_path=path, max_concurrency=1).closed_loop


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the trace is empty"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "the trace is empty"),
        ('{"timestamp": 1,\n', ":1: "),
        (
            '{"timestamp": 1, "input_length": 5, "output_length": 2, "hash_ids": []}\n'
            '{"timestamp": 1}\n',
            ":2: .*input_length",
        ),
        ('{"prompt": "x"}', "unknown format with the fields prompt"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", ":2: "),
        ('{"timestamp": 0, "input_length": -5, "output_length": 2}', "length of -5"),
        ("a,b\n1,2\n", "unknown format"),
    ],
)
def test_broken_traces_are_named_with_their_line(tmp_path, content, message):
    path = tmp_path / "trace"
    path.write_text(content)
    with pytest.raises(LoadgenError, match=message):
        read_trace(path, TraceOptions())


def test_a_trace_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(LoadgenError, match="No such file"):
        read_trace(tmp_path / "none", TraceOptions())
    (tmp_path / "broken.gz").write_bytes(b"\x1f\x8b\x08\x00garbage")
    with pytest.raises(LoadgenError, match="cannot read"):
        read_trace(tmp_path / "broken.gz", TraceOptions())


@pytest.mark.parametrize(
    ("name", "count", "longest"),
    [("sample:mooncake", 600, 130_000), ("sample:azure", 1000, 5000)],
)
def test_shipped_samples(name, count, longest):
    requests = read_trace(trace_path(name), TraceOptions())
    assert len(requests) == count
    assert longest / 3 < max(request.prompt_tokens for request in requests) < longest
    assert any(request.blocks for request in requests) == (name == "sample:mooncake")
