"""A load beside which a fleet changes: workers that each ask again as soon as they are answered."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

GRID = re.compile(
    r'^medha_generation_tokens_total\{.*grid="([^"]+)".*\} (\S+)$', re.MULTILINE
)


@dataclass
class Asked:
    """One request. `ttft_s`: to its first frame; `wrong`: what was not as it should be."""

    at: float
    ttft_s: float = 0.0
    status: int = 0
    wrong: str = ""


@dataclass
class Load:
    """What was asked so far. `finished` counts whole answers."""

    url: str
    model: str
    prompt: int
    tokens: int
    asked: list[Asked] = field(default_factory=list)
    going: bool = True
    ended: asyncio.Event = field(default_factory=asyncio.Event)  # one more

    @property
    def finished(self) -> int:
        return sum([one.status == 200 and not one.wrong for one in self.asked])

    @property
    def wrong(self) -> list[str]:
        """One line for each that had no whole answer."""
        return [one.wrong for one in self.asked if one.wrong]

    def ttft_s(
        self, share: float, start: float = 0.0, stop: float = float("inf")
    ) -> float:
        """A percentile, of those who came within these instants."""
        found = [
            one.ttft_s for one in self.asked if start <= one.at < stop and not one.wrong
        ]
        return sorted(found)[int(share * (len(found) - 1))]

    async def work(self, session: aiohttp.ClientSession, seed: int) -> None:
        """One worker, until `going` ends."""
        draw = random.Random(seed)
        while self.going:
            asked = Asked(time.monotonic())
            self.asked.append(asked)
            prompt = [draw.randrange(200) for _ in range(self.prompt)]
            try:
                await self._ask(session, asked, prompt)
            except aiohttp.ClientError as error:
                asked.wrong = f"{type(error).__name__}: {error}"
            self.ended.set()
            if asked.wrong:
                await asyncio.sleep(0.1)

    async def more(self, count: int, limit_s: float = 60.0) -> None:
        """So many more whole answers have come."""
        wanted = self.finished + count
        async with asyncio.timeout(limit_s):
            while self.finished < wanted:
                self.ended.clear()
                await self.ended.wait()

    async def _ask(
        self, session: aiohttp.ClientSession, asked: Asked, prompt: list[int]
    ) -> None:
        body = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": self.tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        async with session.post(f"{self.url}/v1/completions", json=body) as answer:
            asked.status = answer.status
            if answer.status != 200:
                asked.wrong = f"{answer.status}: {(await answer.text())[:200]}"
                return
            frames = []
            async for line in answer.content:
                if line.startswith(b"data: "):
                    if not frames:
                        asked.ttft_s = time.monotonic() - asked.at
                    frames.append(line)
        if not frames or frames[-1].strip() != b"data: [DONE]":
            asked.wrong = "the stream was cut"
        elif f'"completion_tokens":{self.tokens}'.encode() not in frames[-2]:
            asked.wrong = f"not {self.tokens} tokens: {frames[-2][:200]!r}"


@asynccontextmanager
async def loaded(
    url: str, model: str, workers: int, prompt: int, tokens: int
) -> AsyncIterator[Load]:
    """So many workers ask within the block; afterwards they finish what they have begun."""
    load = Load(url, model, prompt, tokens)
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        for number in range(workers):
            group.create_task(load.work(session, number))
        try:
            yield load
        finally:
            load.going = False


async def grids(url: str) -> dict[str, float]:
    """The grids that tell of themselves, and the tokens that each has generated."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{url}/metrics") as answer,
    ):
        page = await answer.text()
    return {name: float(count) for name, count in GRID.findall(page)}


Grids = dict[str, float]


async def until(url: str, holds: Callable[[Grids], bool], limit_s: float) -> Grids:
    """Wait until this holds of the grids."""
    async with asyncio.timeout(limit_s):
        while True:
            found = await grids(url)
            if holds(found):
                return found
            await asyncio.sleep(0.25)


async def until_grids(url: str, count: int, limit_s: float) -> Grids:
    """Wait until so many tell of themselves."""
    return await until(url, lambda found: len(found) == count, limit_s)
