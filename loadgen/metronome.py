"""An OpenAI-compatible server that answers on the beat: what the self-test measures the load
generator against.

It computes nothing. The first token of every answer is due `first_token_s` after the request was
read, the others follow every `gap_s`; so what the load generator reports can be compared with the
truth. A bare asyncio protocol, because a web framework would be the bottleneck long before the load
generator is.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from multiprocessing.connection import Connection as Pipe
from typing import Any, cast

import httptools
import msgspec

HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
TOKEN = b'data: {"id":"cmpl-0","choices":[{"index":0,"text":" tick","finish_reason":null}]}\n\n'
LAST = b'data: {"id":"cmpl-0","choices":[{"index":0,"text":" tick","finish_reason":"length"}]}\n\n'


class _Body(msgspec.Struct):
    prompt: list[int] | str = ""
    max_tokens: int = 16


class _Beat(asyncio.Protocol):
    """One connection: requests one after another, each answered token by token."""

    def __init__(self, model: str, first_token_s: float, gap_s: float) -> None:
        self.model = model
        self.first_token_s = first_token_s
        self.gap_s = gap_s
        self.loop = asyncio.get_running_loop()
        self.body = bytearray()
        self.url = b""
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpRequestParser(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self.timer:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        body = bytes(self.body)
        self.body = bytearray()
        if self.url.startswith(b"/v1/models"):
            self._answer(
                {
                    "object": "list",
                    "data": [{"id": self.model, "object": "model", "root": self.model}],
                }
            )
            return
        request = msgspec.json.decode(body, type=_Body)
        self.unsent = request.max_tokens
        self.prompt_tokens = len(request.prompt)
        self.max_tokens = request.max_tokens
        self.due = self.loop.time() + self.first_token_s
        self.head = HEAD
        self.timer = self.loop.call_at(self.due, self._tick)

    def _tick(self) -> None:
        """Write the token that is due (all that are due, if this process is late) and wait for the
        next one."""
        now = self.loop.time()
        out = self.head
        self.head = b""
        while self.unsent and self.due <= now + 5e-4:
            self.unsent -= 1
            out += _chunk(TOKEN if self.unsent else LAST)
            self.due += self.gap_s
        if self.unsent:
            self.timer = self.loop.call_at(self.due, self._tick)
        else:
            usage = b'data: {"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d}}\n\n'
            out += (
                _chunk(
                    usage % (self.prompt_tokens, self.max_tokens) + b"data: [DONE]\n\n"
                )
                + b"0\r\n\r\n"
            )
        self.transport.write(out)

    def _answer(self, body: dict[str, Any]) -> None:
        payload = msgspec.json.encode(body)
        head = (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % len(payload)
        )
        self.transport.write(head + payload)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _serve(pipe: Pipe, model: str, first_token_s: float, gap_s: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: _Beat(model, first_token_s, gap_s), "127.0.0.1", 0, backlog=4096
    )
    closed: asyncio.Future[None] = loop.create_future()
    loop.add_reader(
        pipe.fileno(), lambda: None if closed.done() else closed.set_result(None)
    )
    pipe.send(server.sockets[0].getsockname()[1])
    async with server:
        await closed  # the parent said stop, or is gone


def _main(pipe: Pipe, model: str, first_token_s: float, gap_s: float) -> None:
    asyncio.run(_serve(pipe, model, first_token_s, gap_s))


class Metronome:
    """The server in a process of its own: `with Metronome(...) as url:`."""

    def __init__(
        self,
        *,
        model: str = "metronome",
        first_token_s: float = 0.02,
        gap_s: float = 0.01,
    ) -> None:
        self.arguments = (model, first_token_s, gap_s)

    def __enter__(self) -> str:
        context = multiprocessing.get_context("spawn")
        self.pipe, child = context.Pipe()
        self.process = context.Process(
            target=_main, args=(child, *self.arguments), daemon=True
        )
        self.process.start()
        child.close()
        return f"http://127.0.0.1:{self.pipe.recv()}"

    def __exit__(self, *_: object) -> None:
        self.pipe.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
