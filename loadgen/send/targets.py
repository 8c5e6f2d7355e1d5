"""What the load is sent to. `Target` is all the driver knows; `OpenAITarget` is any
OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from loadgen.errors import LoadgenError
from loadgen.records import PlannedRequest, RequestRecord
from loadgen.send.prompts import PromptMaker
from loadgen.send.talks import Talks
from loadgen.send.wire import Connection, HttpExchange, clock

Done = Callable[[RequestRecord], None]
# a connection idle for longer may just be dying (uvicorn drops them after 5 s): take a new one
_IDLE_S = 2.0
_CONNECT_S = 30.0


class Target(Protocol):
    """Sends requests and fills their records; never raises for what happens to one request."""

    def prepare(self, request: PlannedRequest, record: RequestRecord) -> Any:
        """Everything that can be done before a request is due."""
        ...

    def send(self, prepared: Any, record: RequestRecord, done: Done) -> None:
        """Send it now; `done(record)` is called once, later."""
        ...

    def cancel(self) -> None:
        """Give up all requests under way: their records are cancelled, and done."""
        ...

    async def close(self) -> None: ...


class ServerAddress(msgspec.Struct, frozen=True):
    """A base URL taken apart."""

    url: str  # without /v1 and without a slash at the end
    host: str
    port: int
    tls: bool
    path: str

    @property
    def authority(self) -> str:
        return (
            f"[{self.host}]:{self.port}"
            if ":" in self.host
            else f"{self.host}:{self.port}"
        )


def parse_address(base_url: str) -> ServerAddress:
    """Raises LoadgenError if it is not http://host[:port][/path]; a /v1 at the end is dropped."""
    text = base_url if "://" in base_url else f"http://{base_url}"
    try:
        parts = urlsplit(text)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise LoadgenError(f"--base-url {base_url}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise LoadgenError(f"--base-url {base_url}: write http://HOST:PORT")
    path = parts.path.rstrip("/").removesuffix("/v1")
    url = f"{parts.scheme}://{parts.netloc}{path}"
    return ServerAddress(url, parts.hostname, port, parts.scheme == "https", path)


class RequestStyle(msgspec.Struct, frozen=True, kw_only=True):
    """What goes into every request."""

    model: str
    endpoint: str = "/v1/completions"
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    # temperature, ignore_eos, ...
    extra_body: Mapping[str, Any] = msgspec.field(default_factory=dict)
    timeout_s: float | None = None
    objective_headers: Callable[[RequestRecord], Mapping[str, str]] | None = None

    @property
    def chat(self) -> bool:
        return self.endpoint.endswith("/chat/completions")


class OpenAITarget:
    """Streams completions from a server, over as many kept-alive connections as the load needs."""

    def __init__(
        self, address: ServerAddress, style: RequestStyle, prompts: PromptMaker
    ) -> None:
        self.address = address
        self.style = style
        self.prompts = prompts
        self._talks = Talks(prompts, style.chat)
        self._tls = ssl.create_default_context() if address.tls else None
        self._idle: list[Connection] = []
        self._active: set[HttpExchange] = set()
        self._connections: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        headers = {
            "Host": address.authority,
            "Content-Type": "application/json",
            "Accept": "text/event-stream",
            "User-Agent": "medha-loadgen",
            **style.headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._head = f"POST {address.path}{style.endpoint} HTTP/1.1\r\n{lines}".encode(
            "latin-1"
        )
        fixed = {
            "model": style.model,
            "stream": True,
            "stream_options": {"include_usage": True},
            **style.extra_body,
        }
        self._body = msgspec.json.encode(fixed)[:-1]

    def prepare(self, request: PlannedRequest, record: RequestRecord) -> HttpExchange:
        """The bytes of a request. `done` is filled in when it is sent."""
        limit = b"max_completion_tokens" if self.style.chat else b"max_tokens"
        if request.turn is not None:
            field = self._talks.prompt(request, request.turn)
        elif self.style.chat:
            field = (
                b'"messages":[{"role":"user","content":'
                + self.prompts.make(request)
                + b"}]"
            )
        else:
            field = b'"prompt":' + self.prompts.make(request)
        body = b'%b,"%b":%d,%b}' % (self._body, limit, request.output_tokens, field)
        extra = f"x-request-id: {record.id}\r\nContent-Length: {len(body)}\r\n"
        if self.style.objective_headers is not None:
            extra += "".join(
                f"{name}: {value}\r\n"
                for name, value in self.style.objective_headers(record).items()
            )
        return HttpExchange(
            self._head + extra.encode("latin-1") + b"\r\n",
            body,
            record,
            lambda record: None,
        )

    def send(self, prepared: HttpExchange, record: RequestRecord, done: Done) -> None:
        def ended(record: RequestRecord) -> None:
            self._active.discard(prepared)
            if record.turn is not None:
                self._talks.answered(record, record.turn)
            done(record)

        prepared.done = ended
        self._active.add(prepared)
        record.sent_at = clock()
        if self.style.timeout_s is not None:
            loop = asyncio.get_running_loop()
            prepared.timer = loop.call_later(
                self.style.timeout_s, self._timed_out, prepared
            )
        self._dispatch(prepared)

    def cancel(self) -> None:
        for exchange in list(self._active):
            exchange.record.cancelled = True
            self._drop(exchange, "cancelled")

    async def close(self) -> None:
        self.cancel()
        for task in list(self._opening):
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)
        for connection in list(self._connections):
            connection.close()
        await asyncio.sleep(0)  # lets the transports close their sockets

    def _dispatch(self, exchange: HttpExchange) -> None:
        oldest = clock() - _IDLE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.open and connection.idle_since >= oldest:
                connection.begin(exchange)
                return
            self._forget(connection)
        task = asyncio.get_running_loop().create_task(self._open(exchange))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, exchange: HttpExchange) -> None:
        address = self.address
        connect = asyncio.get_running_loop().create_connection
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, connection = await connect(
                    self._connection, address.host, address.port, ssl=self._tls
                )
        except TimeoutError:
            exchange.end(
                f"no connection to {address.authority} within {_CONNECT_S:g} s"
            )
        except OSError as error:
            exchange.end(
                f"cannot connect to {address.authority}: {error.strerror or error}"
            )
        except asyncio.CancelledError:
            exchange.end("cancelled")
            raise
        else:
            self._connections.add(connection)
            if exchange.record.ended_at is None:
                connection.begin(exchange)
            else:
                self._forget(connection)

    def _connection(self) -> Connection:
        return Connection(self._idle.append, self._again)

    def _again(self, exchange: HttpExchange) -> bool:
        """A kept connection died before the answer began: once more, on another one."""
        if exchange.retried:
            return False
        exchange.retried = True
        self._dispatch(exchange)
        return True

    def _timed_out(self, exchange: HttpExchange) -> None:
        self._drop(exchange, f"timed out after {self.style.timeout_s:g} s")

    def _drop(self, exchange: HttpExchange, error: str) -> None:
        for connection in self._connections:
            if connection.exchange is exchange:
                self._forget(connection)
                break
        exchange.end(error)

    def _forget(self, connection: Connection) -> None:
        self._connections.discard(connection)
        connection.close()
