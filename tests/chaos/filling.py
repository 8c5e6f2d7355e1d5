"""Fill the KV cache, whose memory is taken when a page is first written and stays: so that what
grows from then on is no page."""

from __future__ import annotations

import asyncio
from typing import Final

from clients.client import Client
from tests.chaos.server import Server
from tests.chaos.streams import prompt_of

FULL: Final = 0.97
PROMPT_TOKENS: Final = 4000
AT_ONCE: Final = 4
MOST_PROMPTS: Final = 400


def fill(server: Server) -> None:
    """Send prompts that differ until finished ones hold all pages. Raises RuntimeError if they do
    not after `MOST_PROMPTS`."""
    for salt in range(0, MOST_PROMPTS, AT_ONCE):
        if server.metrics()["medha_prefix_cache_usage_perc", ""] >= FULL:
            return
        asyncio.run(_send(server, range(salt, salt + AT_ONCE)))
    raise RuntimeError(f"the KV cache is not full after {MOST_PROMPTS} prompts")


async def _send(server: Server, salts: range) -> None:
    async with (
        Client(server.url, model=server.model) as client,
        asyncio.TaskGroup() as group,
    ):
        for salt in salts:
            group.create_task(_read(client, prompt_of(PROMPT_TOKENS, 10_000 + salt)))


async def _read(client: Client, prompt: list[int]) -> None:
    async for _ in client.complete(prompt, max_tokens=1, temperature=0):
        pass
