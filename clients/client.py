"""An async client for this server, or any other that speaks OpenAI's API.

async with Client("http://127.0.0.1:8000") as client:
    async for event in client.chat("Why is the sky blue?", max_tokens=100, ttft_s=0.5):
        match event:
            case Token(text=text): print(text, end="")
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any

import aiohttp
import msgspec

from clients.answers import DONE, read_accepted, read_body, read_error, read_frame
from clients.errors import ClientError, ProtocolError, ServerDownError, StreamCutError
from clients.events import Event, Resumed, Usage
from clients.resuming import EVENT_IDS_HEADER, Resuming
from clients.sse import FrameTooLargeError, SseParser

Prompt = str | Sequence[int]


class Client:
    """One server. Connections are kept and shared; any number of requests may run at once."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        *,
        model: str | None = None,
        api_key: str | None = None,
        idle_timeout_s: float = 300.0,
        connect_timeout_s: float = 10.0,
        resumes: int = 10,
        resume_for_s: float = 60.0,
        resume_wait_s: float = 0.1,
    ) -> None:
        """`base_url` with or without http:// and /v1; `model` None: the server's first. A request
        may last for ever, but the stream must not be silent (keep-alives count) for
        `idle_timeout_s`.

        A stream that is cut is resumed where it was, if the server can do that: at most `resumes`
        times for an answer, trying for `resume_for_s` after a cut, first after `resume_wait_s`,
        then ever more seldom."""
        url = base_url if "://" in base_url else f"http://{base_url}"
        self.base_url = url.rstrip("/").removesuffix("/v1")
        self.model = model
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=connect_timeout_s, sock_read=idle_timeout_s
        )
        self._resuming = partial(Resuming, resumes, resume_for_s, resume_wait_s)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def models(self) -> list[str]:
        """Names of the models served."""
        data = await self._call("GET", "/v1/models")
        try:
            return [str(model["id"]) for model in msgspec.json.decode(data)["data"]]
        except (msgspec.DecodeError, KeyError, TypeError):
            raise ProtocolError(
                f"{self.base_url}/v1/models does not list models"
            ) from None

    async def tokenize(self, text: str) -> list[int]:
        """The text's token ids, as the server sees them."""
        data = await self._call("POST", "/tokenize", {"prompt": text})
        try:
            return list(msgspec.json.decode(data)["tokens"])
        except (msgspec.DecodeError, KeyError, TypeError):
            raise ProtocolError(
                f"{self.base_url}/tokenize does not list tokens"
            ) from None

    async def get(self, path: str) -> bytes:
        """The body of GET `path`, such as /metrics or /medha/timelines."""
        return await self._call("GET", path)

    def complete(self, prompt: Prompt, **options: Any) -> AsyncIterator[Event]:
        """POST /v1/completions; `options` as for `request`."""
        value = prompt if isinstance(prompt, str) else list(prompt)
        return self.request("/v1/completions", {"prompt": value}, **options)

    def chat(
        self, messages: str | Sequence[Mapping[str, Any]], **options: Any
    ) -> AsyncIterator[Event]:
        """POST /v1/chat/completions with one user message or a whole conversation; `options` as for
        `request`."""
        turns = (
            [{"role": "user", "content": messages}]
            if isinstance(messages, str)
            else list(messages)
        )
        return self.request("/v1/chat/completions", {"messages": turns}, **options)

    async def request(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        stream: bool = True,
        ttft_s: float | None = None,
        tpot_s: float | None = None,
        timeout_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> AsyncIterator[Event]:
        """One request's events. `fields` (max_tokens, temperature, stop, n, medha ...) go into the
        body as they are; the objectives go as headers, which other servers ignore. Raises
        ClientError."""
        sent = {
            **body,
            **{name: value for name, value in fields.items() if value is not None},
        }
        sent.setdefault("model", await self._default_model())
        sent["stream"] = stream
        if stream:
            sent.setdefault("stream_options", {"include_usage": True})
        asked = {**objective_headers(ttft_s, tpot_s, timeout_s), **(headers or {})}
        if stream:
            asked.setdefault(EVENT_IDS_HEADER, "1")
        resuming = self._resuming()
        started = time.perf_counter()
        whole = False
        while not whole:
            try:
                async with aclosing(
                    self._ask(path, sent, asked, resuming, started)
                ) as events:
                    async for event in events:
                        yield event
                whole = True
            except ClientError as error:
                pause_s = resuming.pause_s(error, time.perf_counter())
                await asyncio.sleep(pause_s)

    async def _ask(
        self,
        path: str,
        body: Mapping[str, Any],
        headers: Mapping[str, str],
        resuming: Resuming,
        started: float,
    ) -> AsyncGenerator[Event]:
        """The events of one connection."""
        again = resuming.headers
        with _network_errors(self.base_url):
            async with self._open("POST", path, body, {**headers, **again}) as response:
                if response.status != 200:
                    raise read_error(
                        response.status, await response.read(), response.headers
                    )
                at_s = time.perf_counter() - started
                if again:
                    resuming.opened()
                    yield Resumed(resuming.tokens, at_s, resuming.times)
                else:
                    yield read_accepted(response.headers)
                if response.content_type == "text/event-stream":
                    async for event in _stream(response, resuming, started):
                        yield event
                else:
                    for event in read_body(
                        await response.read(), time.perf_counter() - started
                    ):
                        yield event

    async def _default_model(self) -> str:
        if self.model is None:
            names = await self.models()
            if not names:
                raise ProtocolError(f"{self.base_url} serves no model")
            self.model = names[0]
        return self.model

    async def _call(self, method: str, path: str, body: Any = None) -> bytes:
        with _network_errors(self.base_url):
            async with self._open(method, path, body, {}) as response:
                data: bytes = await response.read()
                if response.status != 200:
                    raise read_error(response.status, data, response.headers)
                return data

    def _open(
        self, method: str, path: str, body: Any, headers: Mapping[str, str]
    ) -> Any:
        if self._session is None:
            # Many streams at once are the point: no cap on connections. Lines may be
            # long: read in large pieces.
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=self._timeout,
                headers=self._headers,
                read_bufsize=2**18,
            )
        data = None if body is None else msgspec.json.encode(body)
        kind = {} if data is None else {"content-type": "application/json"}
        return self._session.request(
            method, self.base_url + path, data=data, headers={**kind, **headers}
        )


async def _stream(
    response: aiohttp.ClientResponse, resuming: Resuming, started: float
) -> AsyncIterator[Event]:
    """Events until `[DONE]`; a stream that ends without it was cut."""
    parser = SseParser()
    async for chunk in response.content.iter_any():
        at_s = time.perf_counter() - started
        try:
            frames = parser.feed(chunk)
        except FrameTooLargeError as error:
            raise ProtocolError(f"the server sent {error}") from None
        resuming.place = parser.last_event_id or resuming.place
        for frame in frames:
            if frame.data == DONE:
                return
            for event in read_frame(frame, at_s):
                if isinstance(event, Usage) and resuming.times:
                    event = msgspec.structs.replace(event, resumed=resuming.times)
                yield event
    raise StreamCutError("the stream ended before the answer did")


def objective_headers(
    ttft_s: float | None, tpot_s: float | None, timeout_s: float | None
) -> dict[str, str]:
    """Objectives as llm-d's headers, the time limit as one of our own: Ray Serve also acts on
    `x-request-timeout-seconds`, and ends a request with a text, or in the middle of a stream."""
    headers = {}
    if ttft_s is not None:
        headers["x-llm-d-slo-ttft-ms"] = f"{ttft_s * 1000:g}"
    if tpot_s is not None:
        headers["x-llm-d-slo-tpot-ms"] = f"{tpot_s * 1000:g}"
    if timeout_s is not None:
        headers["x-medha-timeout-seconds"] = f"{timeout_s:g}"
    return headers


@contextmanager
def _network_errors(url: str) -> Iterator[None]:
    """aiohttp's many exceptions as three of ours, each with one short line."""
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise ServerDownError(f"no server at {url}: {_reason(error)}") from None
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
        raise ServerDownError(f"not an HTTP URL: {url}") from None
    except TimeoutError:
        raise StreamCutError(f"the server at {url} is silent") from None
    except (aiohttp.ClientError, ConnectionError) as error:
        raise StreamCutError(
            f"the connection to {url} was cut: {_reason(error)}"
        ) from None


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "it takes too long to connect"
    inner = getattr(error, "os_error", None) or error
    number = getattr(inner, "errno", None)
    text = (
        os.strerror(number)
        if number and number > 0
        else str(inner) or type(error).__name__
    )
    return text.splitlines()[0]
