"""The load beside which something dies: eight streams and a long prefill, and probes for service.

Everything is one event loop and one clock, `time.perf_counter`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

import aiohttp

from clients.client import Client
from clients.errors import ClientError
from clients.events import Finished, Progress, Token, Usage
from tests.chaos.judging import Probe, Stream

STREAMS: Final = 8
STREAM_TOKENS: Final = 150
LONG_PROMPT_TOKENS: Final = 4500
LONG_TOKENS: Final = 20
GREEDY: Final[dict[str, Any]] = {"temperature": 0, "ignore_eos": True}
# The same prompts come in every turn, and are to be computed every time.
UNCACHED: Final[dict[str, Any]] = {"medha": {"cache": False}}
_UNDER_WAY = 5  # tokens of each stream before the long prompt is sent
_PROBE_EVERY_S = 0.1
_PROBE_LIMIT_S = 60.0


def prompt_of(tokens: int, salt: int) -> list[int]:
    """Token ids without a pattern."""
    return [
        100 + (salt * 7919 + position * 104_729) % 40_000 for position in range(tokens)
    ]


class Load:
    """Eight streams, and a long prompt that follows when all of them are under way.

    `await run()` once; `ready` is set when everything is in flight: each stream has tokens, the
    first chunk of the long prompt is computed.
    """

    def __init__(self, url: str, model: str) -> None:
        self._url = url
        self._model = model
        self.streams = [Stream(f"stream-{number}") for number in range(STREAMS)]
        self.long = Stream("long")
        self.ready = asyncio.Event()
        self.prefilled = 0  # tokens of the long prompt
        self._under_way = asyncio.Event()

    @property
    def all(self) -> list[Stream]:
        return [*self.streams, self.long]

    async def run(self) -> None:
        """Until every stream has ended, well or badly."""
        async with (
            Client(self._url, model=self._model) as client,
            asyncio.TaskGroup() as group,
        ):
            for number, stream in enumerate(self.streams):
                prompt = prompt_of(30 + number, number)
                group.create_task(self._follow(client, stream, prompt, STREAM_TOKENS))
            group.create_task(self._send_long(client))

    async def _send_long(self, client: Client) -> None:
        await self._under_way.wait()
        prompt = prompt_of(LONG_PROMPT_TOKENS, STREAMS)
        await self._follow(client, self.long, prompt, LONG_TOKENS)

    async def _follow(
        self, client: Client, stream: Stream, prompt: list[int], max_tokens: int
    ) -> None:
        options = {**GREEDY, **UNCACHED, "max_tokens": max_tokens}
        try:
            async for event in client.complete(prompt, **options):
                self._take(stream, event)
        except ClientError as error:
            stream.error = str(error)
        if not stream.ended:
            stream.error = "the stream ended without a reason"
        self._look()

    def _take(self, stream: Stream, event: Any) -> None:
        if isinstance(event, Token):
            stream.text += event.text
            stream.moments.append(time.perf_counter())
        elif isinstance(event, Finished):
            stream.finish_reason = event.reason
        elif isinstance(event, Usage):
            stream.tokens = event.completion_tokens
        elif isinstance(event, Progress):
            if stream is self.long:
                self.prefilled = event.prefilled_tokens
        elif type(event).__name__ == "Resumed":  # by a client that resumes cut streams
            stream.resumed += 1
        self._look()

    def _look(self) -> None:
        """Set the marks that are reached."""
        if all(
            len(stream.moments) >= _UNDER_WAY or stream.ended for stream in self.streams
        ):
            self._under_way.set()
        if self.prefilled or self.long.ended:
            self.ready.set()


class Prober:
    """Asks for one token every 100 ms, each time over a new connection, until it is stopped."""

    def __init__(self, url: str, model: str) -> None:
        self._url = url
        self._body = {
            "model": model,
            "prompt": [100, 200, 300],
            "max_tokens": 1,
            **GREEDY,
        }
        self.probes: list[Probe] = []
        self._open: set[asyncio.Task[None]] = set()

    async def run(self, enough: Callable[[], bool]) -> None:
        """Until `enough`, and until the last probe is answered."""
        while not enough():
            task = asyncio.create_task(self._probe())
            self._open.add(task)
            task.add_done_callback(self._open.discard)
            await asyncio.sleep(_PROBE_EVERY_S)
        await asyncio.gather(*self._open)

    async def _probe(self) -> None:
        sent_at = time.perf_counter()
        error: str | None = None
        limit = aiohttp.ClientTimeout(total=_PROBE_LIMIT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=limit) as session,
                session.post(f"{self._url}/v1/completions", json=self._body) as answer,
            ):
                await answer.read()
                error = None if answer.status == 200 else f"HTTP {answer.status}"
        except (aiohttp.ClientError, OSError) as failure:
            error = str(failure) or type(failure).__name__
        self.probes.append(Probe(sent_at, time.perf_counter(), error))
