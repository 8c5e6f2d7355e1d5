"""The real thing: `serve run` with tracing on, a real OTLP receiver, and the tree it was sent."""

import asyncio
import json
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families
from receivers import HttpReceiver, children, facts

sys.path.append(str(Path(__file__).parent.parent / "system"))
import itertools

from serve_process import free_port, serving

LONG = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
ARGS = {
    "model_loading_config": {
        "model_source": "random",
        "model_id": "toy",
        "dtype": "float32",
        "max_model_len_tokens": 8192,
        "random": {"hidden": 128, "intermediate": 512, "layers": 8},
    },
    "parallel": {"spp": 2, "kvp": 2, "max_tokens_per_kvp_group": 2000},
    "actors": {"num_cpus": 0.5, "spares": 0},
    "scheduler": {"batch_budget_s": 0.02},
    "kv_cache": {"budget_bytes": 2**25, "page_tokens": 16},
    "predictor": {"calibrate": False},
    "deployment_config": {"num_replicas": 2},
}


class Traced:
    """A server with two replicas, and who gets its spans."""

    def __init__(self, url: str, receiver: HttpReceiver) -> None:
        self.url = url
        self.receiver = receiver

    async def complete(
        self,
        session: aiohttp.ClientSession,
        prompt: int,
        tokens: int,
        trace: str | None = None,
    ):
        headers = {"traceparent": f"00-{trace}-{SPAN}-01"} if trace else {}
        fields = {
            "model": "toy",
            "prompt": [65 + i % 26 for i in range(prompt)],
            "max_tokens": tokens,
        }
        # All prompts begin alike, and every chunk of the long one is to be seen.
        uncached = {"medha": {"cache": False}}
        body = {**fields, **uncached, "temperature": 0, "ignore_eos": True}
        async with session.post(
            f"{self.url}/v1/completions", json=body, headers=headers
        ) as answer:
            assert answer.status == 200
            return answer.headers["x-medha-trace-id"], await answer.json()

    def get(self, path: str):
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
            return answer.read().decode()


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    receiver = HttpReceiver(free_port())
    tracing = {
        "exporter": "otlp_http",
        "endpoint": receiver.endpoint,
        "ui_url": "http://jaeger/trace/{trace_id}",
    }
    try:
        with serving(
            tmp_path_factory.mktemp("traced"), **ARGS, telemetry={"tracing": tracing}
        ) as (
            url,
            _,
        ):
            yield Traced(url, receiver)
    finally:
        receiver.close()


@pytest.fixture(scope="module")
def convoy(traced: Traced) -> dict[str, list[Span]]:
    """A prompt of two KV groups with short ones arriving while it is prefilled; the spans of each,
    by trace."""

    async def run() -> list[str]:
        async with aiohttp.ClientSession() as session:
            long = asyncio.ensure_future(traced.complete(session, 3500, 6, LONG))
            shorts: list[str] = []
            # whenever two are through, two more come, as long as the long one runs
            while not long.done():
                pair = await asyncio.gather(
                    *[traced.complete(session, 300, 3) for _ in range(2)]
                )
                shorts += [trace for trace, _ in pair]
            return [(await long)[0], *shorts]

    traces = asyncio.run(run())
    assert traces[0] == LONG

    def complete(spans: list[Span]) -> bool:
        return any(span.name == "decode" for span in spans) and any(
            span.name.startswith("POST") for span in spans
        )

    return {trace: traced.receiver.wait(trace, complete) for trace in traces}


def test_one_trace_one_tree(convoy):
    for trace, spans in convoy.items():
        (root,) = [span for span in spans if span.name == "POST /v1/completions"]
        assert root.parent_span_id.hex() == (SPAN if trace == LONG else "")
        ids = {span.span_id for span in spans}
        assert all(span.parent_span_id in ids for span in spans if span is not root)
        assert all(
            span.start_time_unix_nano <= span.end_time_unix_nano for span in spans
        )
        names = [span.name for span in children(spans, root)]
        assert names == ["tokenize", "admission", "queue", "prefill", "decode"]
        assert isinstance(facts(root)["slo_met"], bool)


def test_a_long_request_shows_its_chunks_stages_and_shards(convoy):
    spans = convoy[LONG]
    (prefill,) = [span for span in spans if span.name == "prefill"]
    chunks = [
        span
        for span in children(spans, prefill)
        if span.name.startswith("prefill.chunk")
    ]
    at = 0
    for chunk in chunks:
        told = facts(chunk)
        assert told["start"] == at
        assert {
            "kv_tokens",
            "predicted_s",
            "actual_s",
            "slack_before_s",
            "batch_id",
        } <= set(told)
        at += told["tokens"]
    assert at == 3500
    overlaps = [
        b
        for a, b in itertools.pairwise(chunks)
        if b.start_time_unix_nano < a.end_time_unix_nano
    ]
    assert overlaps, "several chunks were in the pipeline at once"
    names = [{span.name for span in children(spans, chunk)} for chunk in chunks]
    assert names[0] == {"stage[0]", "stage[1]"}
    assert names[-1] == {
        "stage[0].shard[0]",
        "stage[1].shard[0]",
        "stage[0].shard[1]",
        "stage[1].shard[1]",
    }
    (shard,) = [
        span for span in children(spans, chunks[-1]) if span.name == "stage[1].shard[0]"
    ]
    assert 0 < facts(shard)["exchange_s"] < facts(shard)["busy_s"]


def test_a_preempted_gap_is_linked_to_who_took_the_turn(convoy):
    gaps = [span for span in convoy[LONG] if span.name == "preempted"]
    assert gaps
    roots = {
        (span.trace_id, span.span_id)
        for span in itertools.chain.from_iterable(convoy.values())
        if span.name.startswith("POST")
    }
    for gap in gaps:
        (link,) = gap.links
        assert (link.trace_id, link.span_id) in roots
        assert link.trace_id.hex() != LONG
        assert facts(gap)["waited_s"] >= 0


def test_metrics_are_the_same_whichever_replica_is_asked(traced, convoy):
    def scrape():
        families = {
            f.name: f for f in text_string_to_metric_families(traced.get("/metrics"))
        }
        engine = families["medha_prompt_tokens"].samples[0].value
        replicas = {
            s.labels["replica"]: s.value
            for s in families["medha_http_requests"].samples
        }
        return engine, replicas

    seen = [scrape() for _ in range(8)]
    assert {engine for engine, _ in seen} == {3500 + 300 * (len(convoy) - 1)}
    assert sum(seen[-1][1].values()) == len(convoy)


def test_the_timelines_of_all_requests_are_one_perfetto_file(traced, convoy):
    trace = json.loads(traced.get("/medha/timelines"))
    tracks = [
        e["args"]["name"]
        for e in trace["traceEvents"]
        if e["ph"] == "M" and e["name"] == "thread_name"
    ]
    assert len([name for name in tracks if name.startswith("stage")]) == 4
    assert len([name for name in tracks if "tokens)" in name]) == len(convoy)


def test_the_client_leads_from_a_request_to_its_trace(traced, convoy, capsys):
    from clients.__main__ import main

    assert main(["trace", LONG, "--base-url", traced.url]) == 0
    told = capsys.readouterr().out
    assert "3500 tokens" in told
    assert "preempted" in told
    assert f"http://jaeger/trace/{LONG}" in told
