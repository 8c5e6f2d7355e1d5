"""Streams of token ids over HTTP, and when each token came."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import aiohttp

PROMPT = 300  # tokens


@dataclass
class TokenStream:
    """One answer of `url`, token by token; the same tokens for the same seed."""

    url: str
    seed: int
    length: int
    tokens: list[int] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Ask, and hear all of it."""
        draw = random.Random(self.seed)
        body = {
            "model": "random",
            "prompt": [draw.randrange(200) for _ in range(PROMPT)],
            "max_tokens": self.length,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        async with (
            aiohttp.ClientSession(self.url) as session,
            session.post("/v1/completions", json=body) as answer,
        ):
            assert answer.status == 200, await answer.text()
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    self._hear(json.loads(line[6:]))
        assert len(self.tokens) == self.length

    def _hear(self, frame: dict[str, Any]) -> None:
        assert "error" not in frame, frame
        for choice in frame["choices"]:
            for token in choice["token_ids"]:
                self.tokens.append(token)
                self.at.append(time.monotonic())
        self._news.set()

    async def until(self, tokens: int) -> None:
        """So many are there."""
        while len(self.tokens) < tokens:
            self._news.clear()
            await self._news.wait()

    @property
    def pause(self) -> tuple[float, int]:
        """The longest time between two tokens, and how many had come before it."""
        gaps = [after - before for before, after in pairwise(self.at)]
        longest = max(gaps)
        return longest, gaps.index(longest) + 1


async def undisturbed(url: str, count: int, length: int) -> list[TokenStream]:
    """So many streams, at once, with nothing dying."""
    streams = [TokenStream(url, seed, length) for seed in range(count)]
    async with asyncio.timeout(180):
        await asyncio.gather(*[one.run() for one in streams])
    return streams


def told(what: str, streams: Sequence[TokenStream]) -> None:
    """What a loss cost each stream, for the tables of docs/fleet.md."""
    for number, stream in enumerate(streams):
        longest, known = stream.pause
        print(f"\n{what}: stream {number} paused {longest:.1f} s after {known} tokens")
