"""What telemetry costs: `python -m deployments.bench`.

The same requests in turns with it off and on (timelines, figures, every request traced).
Requests go through the whole HTTP application in this process (without sockets), with two engines
beside each other; spans go by OTLP to a receiver in another process. "Empty steps" are the worst
case: no model hides the cost.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median
from typing import Any

from deployments.observatory import Observatory
from deployments.server import Server
from deployments.text_sources import load_text
from medha_actors.actors.local import engine
from medha_actors.bench.table import command
from medha_actors.config import load

_SINK = """
import http.server
class Sink(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink)
print(server.server_port, flush=True)
server.serve_forever()
"""
_TINY = {
    "layers": 2,
    "hidden": 16,
    "heads": 1,
    "kv_heads": 1,
    "head_dim": 16,
    "intermediate": 16,
    "vocabulary": 300,
}
# name, model, requests at once, rounds of them, prompt tokens, output tokens
_LOADS: list[tuple[str, dict[str, Any], int, int, int, int]] = [
    ("embedded model", {"model_source": "embedded", "model_id": "m"}, 8, 1, 256, 48),
    (
        "empty steps",
        {
            "model_source": "random",
            "random": _TINY,
            "dtype": "float32",
            "model_id": "m",
        },
        16,
        2,
        64,
        64,
    ),
]


async def run(repeats: int = 12) -> list[dict[str, Any]]:
    """Output tokens/s off and on, the median of their ratios round by round, and spans sent."""
    rows = []
    command = [sys.executable, "-c", _SINK]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sink:  # noqa: ASYNC220
        try:
            assert sink.stdout is not None
            endpoint = f"http://127.0.0.1:{int(sink.stdout.readline())}"
            for one in _LOADS:
                rows.append(await _compare(one, endpoint, repeats))
        finally:
            sink.terminate()
    return rows


async def _compare(
    asked: tuple[str, dict[str, Any], int, int, int, int], endpoint: str, repeats: int
) -> dict[str, Any]:
    name, model, at_once, rounds, prompt, tokens = asked
    tracing = {"exporter": "otlp_http", "endpoint": endpoint}
    speeds: dict[str, list[float]] = {"off": [], "on": []}
    async with AsyncExitStack() as stack:
        servers = {
            "off": await stack.enter_async_context(_server(model, {"enabled": False})),
            "on": await stack.enter_async_context(_server(model, {"tracing": tracing})),
        }
        for repeat in range(-1, repeats):  # the first one warms up
            for side in ("off", "on") if repeat % 2 else ("on", "off"):
                began = time.perf_counter()
                for _ in range(rounds):
                    await asyncio.gather(
                        *[
                            _request(servers[side][0], prompt, tokens, i)
                            for i in range(at_once)
                        ]
                    )
                if repeat >= 0:
                    speeds[side].append(
                        at_once * rounds * tokens / (time.perf_counter() - began)
                    )
        # the last spans are sent a moment after the requests have ended
        await asyncio.sleep(2.5)
        sent, lost = servers["on"][1].tracing.spans()
    return {
        "load": name,
        "off_tokens_per_s": median(speeds["off"]),
        "on_tokens_per_s": median(speeds["on"]),
        "on_over_off": median(
            on / off for on, off in zip(speeds["on"], speeds["off"], strict=True)
        ),
        "rounds": repeats,
        "spans_sent": sent,
        "spans_lost": lost,
    }


@asynccontextmanager
async def _server(
    model: dict[str, Any], telemetry: dict[str, Any]
) -> AsyncIterator[Any]:
    """An HTTP application over an engine of two stages."""
    args = {
        "model_loading_config": model,
        "actors": {"num_cpus": 0.5},
        "kv_cache": {"budget_bytes": 2**27},
        "telemetry": telemetry,
    }
    config = load(args)
    async with engine(args) as handle:
        observatory = (
            Observatory(config, handle.reports, "bench")
            if config.telemetry.enabled
            else None
        )
        text = load_text(config.model_loading_config)
        server = Server(
            config,
            handle,
            text,
            context_tokens=handle.max_model_len_tokens,
            observatory=observatory,
        )
        yield server.asgi(), observatory


async def _request(app: Any, prompt: int, tokens: int, salt: int) -> None:
    """One streamed completion through the ASGI application."""
    ids = [3 + (i * 7919 + salt * 104_729) % 251 for i in range(prompt)]
    body = {
        "model": "m",
        "prompt": ids,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    incoming = [
        {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
    ]
    status = 0
    forever = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not incoming:
            await forever.wait()
        return incoming.pop()

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "server": ("bench", 80),
        "client": ("bench", 1),
        "root_path": "",
        "scheme": "http",
        "http_version": "1.1",
        "asgi": {"version": "3.0"},
    }
    await app(scope, receive, send)
    assert status == 200, status


def main() -> None:
    """Run it and print its table."""
    command(
        "deployments.bench",
        "tokens/s with timelines, figures and all requests traced, and without",
        12,
        run,
    )


if __name__ == "__main__":
    main()
