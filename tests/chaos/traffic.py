"""Mixed load for the soak: every kind of request there is, the rude ones too.

Each kind sends one request and says how it ended: None as it should, else what was wrong.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp
import msgspec

from tests.chaos.streams import prompt_of

WORKERS: Final = 6
_WORDS: Final = (
    "river",
    "stone",
    "light",
    "engine",
    "summer",
    "paper",
    "window",
    "music",
    "garden",
)
_BUSY: Final = (
    429,
    503,
)  # "try again later" is a proper answer while something is mended
_LIMIT: Final = aiohttp.ClientTimeout(total=180)
_BAD_BODIES: Final = (
    b"not json",
    b'{"prompt": ""}',
    b'{"prompt": "x", "temperature": -1}',
    b'{"prompt": "x", "temperature": NaN}',
    b'{"prompt": "x", "max_tokens": 100000000}',
    b'{"prompt": [99999999]}',
    b'{"prompt": "\xff"}',
    b'{"prompt": "x", "tools": [{"type": "function"}]}',
)


class Traffic:
    """Requests of all kinds from `WORKERS` clients, until it is told to stop."""

    def __init__(self, url: str, model: str, seed: int) -> None:
        self._url = url
        self._model = model
        self._random = random.Random(seed)
        self.sent: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()  # by kind and what was wrong
        self.refused: Counter[str] = Counter()  # told to try again later
        self._kinds: dict[
            str, tuple[float, Callable[[aiohttp.ClientSession], Awaitable[None]]]
        ] = {
            "chat": (6, self._chat),
            "long prompt": (1, self._long),
            "n": (1, self._several),
            "log-probabilities": (2, self._logprobs),
            "penalties": (2, self._penalties),
            "stop strings": (2, self._stops),
            "abort": (3, self._abort),
            "slow reader": (1, self._slow),
            "bad request": (3, self._bad),
            "tokenize": (2, self._tokenize),
        }

    async def run(self, seconds: float) -> None:
        """For so long; requests under way then are waited for."""
        until = asyncio.get_running_loop().time() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work(until))

    async def _work(self, until: float) -> None:
        names = list(self._kinds)
        weights = [weight for weight, _ in self._kinds.values()]
        clock = asyncio.get_running_loop().time
        async with aiohttp.ClientSession(timeout=_LIMIT) as session:
            while clock() < until:
                (name,) = self._random.choices(names, weights)
                self.sent[name] += 1
                try:
                    await self._kinds[name][1](session)
                except _BusyError:
                    self.refused[name] += 1
                    await asyncio.sleep(0.5)
                except _WrongError as error:
                    self.wrong[f"{name}: {error}"] += 1
                except (aiohttp.ClientError, OSError) as error:
                    self.wrong[f"{name}: {type(error).__name__}"] += 1
                    await asyncio.sleep(0.5)

    # ---------------------------------------------------------------- kinds

    async def _chat(self, session: aiohttp.ClientSession) -> None:
        messages = [{"role": "user", "content": f"Tell me about a {self._phrase(5)}."}]
        body = {"messages": messages, "max_tokens": self._random.randint(5, 60)}
        await self._streamed(session, "/v1/chat/completions", body)

    async def _long(self, session: aiohttp.ClientSession) -> None:
        prompt = prompt_of(
            self._random.randint(1000, 4000), self._random.randrange(1000)
        )
        await self._streamed(
            session, "/v1/completions", {"prompt": prompt, "max_tokens": 8}
        )

    async def _several(self, session: aiohttp.ClientSession) -> None:
        body = {"prompt": self._phrase(8), "max_tokens": 20, "n": 3}
        await self._whole(session, "/v1/completions", body)

    async def _logprobs(self, session: aiohttp.ClientSession) -> None:
        body = {
            "prompt": self._phrase(30),
            "max_tokens": 10,
            "logprobs": 5,
            "echo": True,
        }
        await self._whole(session, "/v1/completions", body)

    async def _penalties(self, session: aiohttp.ClientSession) -> None:
        penalties = {
            "repetition_penalty": self._random.uniform(0.5, 2.0),
            "presence_penalty": self._random.uniform(-2.0, 2.0),
            "frequency_penalty": self._random.uniform(-2.0, 2.0),
        }
        body = {"prompt": self._phrase(20), "max_tokens": 30, **penalties}
        await self._streamed(session, "/v1/completions", body)

    async def _stops(self, session: aiohttp.ClientSession) -> None:
        body = {
            "prompt": self._phrase(10),
            "max_tokens": 60,
            "stop": ["\n", " the ", "e"],
        }
        await self._streamed(session, "/v1/completions", body)

    async def _abort(self, session: aiohttp.ClientSession) -> None:
        """Leave after a few tokens."""
        body = {"prompt": self._phrase(10), "max_tokens": 2000, "ignore_eos": True}
        async with self._post(
            session, "/v1/completions", {**body, "stream": True}
        ) as answer:
            _check(answer.status)
            for _ in range(self._random.randint(1, 10)):
                await answer.content.readline()
            answer.close()

    async def _slow(self, session: aiohttp.ClientSession) -> None:
        """Read a little at a time."""
        body = {
            "prompt": self._phrase(10),
            "max_tokens": 100,
            "ignore_eos": True,
            "stream": True,
        }
        async with self._post(session, "/v1/completions", body) as answer:
            _check(answer.status)
            async for _ in answer.content.iter_chunked(2048):
                await asyncio.sleep(0.2)

    async def _bad(self, session: aiohttp.ClientSession) -> None:
        headers = {"content-type": "application/json"}
        data = self._random.choice(_BAD_BODIES)
        url = f"{self._url}/v1/completions"
        async with session.post(url, data=data, headers=headers) as answer:
            await answer.read()
            _check(answer.status, 400)

    async def _tokenize(self, session: aiohttp.ClientSession) -> None:
        body = {"prompt": self._phrase(self._random.randint(10, 3000))}
        await self._whole(session, "/tokenize", body)

    # ---------------------------------------------------------------- sending

    def _phrase(self, words: int) -> str:
        return " ".join(self._random.choices(_WORDS, k=words))

    def _post(
        self, session: aiohttp.ClientSession, path: str, body: dict[str, Any]
    ) -> Any:
        return session.post(self._url + path, json={"model": self._model, **body})

    async def _whole(
        self, session: aiohttp.ClientSession, path: str, body: dict[str, Any]
    ) -> None:
        async with self._post(session, path, body) as answer:
            await answer.read()
            _check(answer.status)

    async def _streamed(
        self, session: aiohttp.ClientSession, path: str, body: dict[str, Any]
    ) -> None:
        """Read to the end, which must be `[DONE]` without an error before it."""
        async with self._post(session, path, {**body, "stream": True}) as answer:
            text = await answer.read()
            _check(answer.status)
        if (fault := fault_of(text)) is not None:
            raise _WrongError(fault)


def fault_of(stream: bytes) -> str | None:
    """What is wrong with a stream of events that was read to its end: an error in it, or no
    `[DONE]`."""
    if not stream.endswith(b"data: [DONE]\n\n"):
        return "the stream was cut"
    for line in stream.splitlines():
        if line.startswith(b'data: {"error"'):
            return str(msgspec.json.decode(line[6:])["error"]["message"])
    return None


class _BusyError(Exception):
    """The server says: later."""


class _WrongError(Exception):
    """Not what such a request should get."""


def _check(status: int, wanted: int = 200) -> None:
    if status in _BUSY:
        raise _BusyError
    if status != wanted:
        raise _WrongError(f"HTTP {status}")
