"""The convoy effect, and its end: short requests behind a 2,400-token prompt, under fcfs and under
lars.

Judged by what the scheduler did, not by seconds: who got a first token before whom, and how many
tokens of the long prompt were computed while a short request waited. The seconds are printed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from statistics import median
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from serve_process import serving, shipped_args

from clients.client import Client
from clients.events import Accepted, Progress, Token
from tests.system.conftest import WATCHED

LONG_TOKENS = 2400
SHORTS = 6


class Answer(msgspec.Struct):
    """What a client got, and the server's record of it."""

    texts: list[str] = []
    first_s: float = 0.0
    timeline: dict[str, Any] = {}


class Convoy(msgspec.Struct):
    """A long prompt and the short ones that arrived while it was read."""

    long: Answer
    shorts: list[Answer]

    @property
    def texts(self) -> list[list[str]]:
        return [answer.texts for answer in (*self.shorts, self.long)]

    @property
    def ttft_s(self) -> float:
        return median([short.first_s for short in self.shorts])

    @property
    def waited_tokens(self) -> float:
        """Tokens of the long prompt that were computed while a short request waited: the median."""
        return median([self._waited(short.timeline) for short in self.shorts])

    def _waited(self, short: dict[str, Any]) -> int:
        chunks = self.long.timeline["chunks"]
        began = short["queued_at"]
        ended = short["first_token_at"]
        return sum(
            [chunk["tokens"] for chunk in chunks if began < chunk["done_at"] <= ended]
        )

    def overtook(self) -> list[bool]:
        """For each short request: did it get its first token before the long one did?"""
        long_at = self.long.timeline["first_token_at"]
        return [short.timeline["first_token_at"] < long_at for short in self.shorts]


async def ask(
    client: Client,
    prompt: list[int],
    progressed: Callable[[int], None] = lambda tokens: None,
) -> Answer:
    """One request to its end; `progressed` hears how many tokens of the prompt are computed."""
    answer = Answer()
    request_id = ""
    async for event in client.complete(prompt, max_tokens=4, temperature=0):
        if isinstance(event, Accepted):
            request_id = event.request_id or ""
        elif isinstance(event, Progress):
            progressed(event.prefilled_tokens)
        elif isinstance(event, Token):
            answer.first_s = answer.first_s or event.at_s
            answer.texts.append(event.text)
    found = await client.get(
        f"/medha/trace/{quote(request_id, safe='')}?format=timeline"
    )
    (answer.timeline,) = msgspec.json.decode(found)["timelines"]
    return answer


def short_prompt(number: int) -> list[int]:
    return [5 + (number * 31 + i * 17) % 1000 for i in range(60)]


async def convoy(url: str) -> Convoy:
    """Each time that another eighth of the long prompt is computed, a short request arrives."""
    long_prompt = [3 + (i * 7919) % 40_000 for i in range(LONG_TOKENS)]
    shorts: list[asyncio.Task[Answer]] = []
    async with Client(url) as client, asyncio.TaskGroup() as group:
        await ask(client, short_prompt(99))

        def progressed(tokens: int) -> None:
            while len(shorts) < SHORTS and tokens * 8 >= LONG_TOKENS * (
                len(shorts) + 1
            ):
                shorts.append(group.create_task(ask(client, short_prompt(len(shorts)))))

        long = await ask(client, long_prompt, progressed)
        return Convoy(long, await asyncio.gather(*shorts))


@pytest.mark.timeout(600)  # for a machine that is busy with other things
async def test_short_requests_do_not_wait_behind_a_long_prompt(tmp_path, embedded):
    assert shipped_args()["scheduler"]["policy"] == "dboost"
    fast = await convoy(embedded)
    sections = WATCHED | {"scheduler": {"policy": "fcfs"}}
    with serving(tmp_path, **(shipped_args() | sections)) as (url, _):
        slow = await convoy(url)
    print(
        f"median TTFT of short requests: fcfs {slow.ttft_s:.2f} s, dboost {fast.ttft_s:.3f} s, "
        f"{slow.ttft_s / fast.ttft_s:.1f} times lower; tokens of the long prompt computed "
        f"meanwhile: fcfs {slow.waited_tokens:g}, dboost {fast.waited_tokens:g}"
    )
    assert slow.overtook() == [False] * SHORTS
    assert fast.overtook() == [True] * SHORTS
    assert slow.waited_tokens >= 10 * fast.waited_tokens
    assert slow.texts == fast.texts  # the same tokens, the long prompt's too
