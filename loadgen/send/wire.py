"""A lean HTTP/1.1 connection for streamed answers: one request at a time, kept alive in between.

The clock is read once, when the event loop hands over the bytes of a read, before anything is
parsed or any task is woken: that instant is the arrival of every token in these bytes. aiohttp
spends 0.5 ms of CPU on such a request with ten tokens (measured: 1,500 to 2,000 requests/s fill a
core before anything is parsed); this path takes a third of it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import cast

import httptools

from loadgen.records import RequestRecord
from loadgen.send.events import TokenStream, body_error

clock = time.monotonic
Done = Callable[[RequestRecord], None]
_LARGEST_ERROR_BODY = 65_536
# What the server tells on arrival, in milliseconds, and where a record keeps it.
_TOLD = {
    b"x-medha-predicted-ttft-ms": "announced_ttft_s",
    b"x-medha-ttft-deadline-ms": "deadline_s",
}


class HttpExchange:
    """A request, its answer so far, and whom to tell when it is over."""

    __slots__ = (
        "body",
        "done",
        "head",
        "progress",
        "record",
        "retried",
        "stream",
        "timer",
    )

    def __init__(
        self, head: bytes, body: bytes, record: RequestRecord, done: Done
    ) -> None:
        self.head = head
        self.body = body
        self.record = record
        self.done = done
        self.stream = TokenStream(record)
        self.timer: asyncio.TimerHandle | None = None
        self.progress = False  # a byte of the answer was seen
        self.retried = False

    def end(self, error: str | None = None) -> None:
        """Close the record, once."""
        if self.record.ended_at is not None:
            return
        self.record.ended_at = clock()
        if error is not None and self.record.error is None:
            self.record.error = error
        if self.timer is not None:
            self.timer.cancel()
        self.done(self.record)


class Connection(asyncio.Protocol):
    """One socket. `released` hears when it can take the next request; `lost` may send an unanswered
    one again."""

    def __init__(
        self,
        released: Callable[[Connection], None],
        lost: Callable[[HttpExchange], bool],
    ) -> None:
        self._released = released
        self._lost = lost
        self.exchange: HttpExchange | None = None
        self.idle_since = 0.0
        self.used = False  # has answered before
        self.open = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.open = True

    def begin(self, exchange: HttpExchange) -> None:
        """Send a request and read its answer."""
        assert self._transport is not None
        self.exchange = exchange
        self._parser = httptools.HttpResponseParser(self)
        self._now = 0.0
        self._framed = self._streams = False
        self._ok = False
        self._body = bytearray()
        self._transport.writelines((exchange.head, exchange.body))

    def close(self) -> None:
        """Drop the socket; an exchange under way is not told."""
        self.exchange = None
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:  # bytes that nobody asked for
            self.close()
            return
        self._now = clock()
        exchange.progress = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.close()
            exchange.end(f"not HTTP as expected: {error}")

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self._streams = value.lower().startswith(b"text/event-stream")
        elif name in (b"content-length", b"transfer-encoding"):
            self._framed = True
        elif name in _TOLD:
            assert self.exchange is not None
            setattr(self.exchange.record, _TOLD[name], _seconds(value))

    def on_headers_complete(self) -> None:
        assert self.exchange is not None
        record = self.exchange.record
        record.status = self._parser.get_status_code()
        record.answered_at = self._now
        self._ok = record.status == 200 and self._streams

    def on_body(self, body: bytes) -> None:
        assert self.exchange is not None
        if self._ok:
            self.exchange.stream.feed(body, self._now)
        elif len(self._body) < _LARGEST_ERROR_BODY:
            self._body += body

    def on_message_complete(self) -> None:
        exchange = self.exchange
        if exchange is None:
            return
        if (
            exchange.record.status or 0
        ) < 200:  # 100 Continue: the answer is still to come
            return
        self.exchange = None
        self.used = True
        if self._parser.should_keep_alive() and self.open:
            self.idle_since = self._now
            self._released(self)
        else:
            self.close()
        self._conclude(exchange)

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        exchange = self.exchange
        self.exchange = None
        if exchange is None:
            return
        if not exchange.progress and self.used and self._lost(exchange):
            # a kept connection that the server had given up: sent again on a new one
            return
        if exchange.record.status is None:
            exchange.end(
                "the server closed the connection without an "
                f"answer{f' ({error})' if error else ''}"
            )
        elif error is not None or self._framed:
            self._broken(exchange, error)
        else:
            self._conclude(
                exchange
            )  # an answer without framing ends with its connection

    def _broken(self, exchange: HttpExchange, error: Exception | None) -> None:
        """The connection ended inside an answer."""
        if self._ok and exchange.stream.done:
            self._conclude(exchange)
        elif self._ok:
            exchange.end(
                f"the connection was lost in mid-stream{f' ({error})' if error else ''}"
            )
        else:
            exchange.end(body_error(exchange.record.status or 0, bytes(self._body)))

    def _conclude(self, exchange: HttpExchange) -> None:
        record = exchange.record
        if self._ok:
            exchange.stream.finish()
            exchange.end()
        elif record.status == 200:
            exchange.end("the answer is not an event stream")
        else:
            exchange.end(body_error(record.status or 0, bytes(self._body)))


def _seconds(milliseconds: bytes) -> float | None:
    """None for what is no number: another server's header of that name."""
    try:
        return float(milliseconds) / 1000
    except ValueError:
        return None
