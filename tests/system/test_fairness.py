"""Two tenants on real stages: what a greedy one waits for itself, and what is told of both."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from serve_process import serving, shipped_args

from clients.client import Client
from clients.events import Token
from tests.system.conftest import WATCHED

KEYS = {"modest": "sk-modest-0123456789abcdef", "greedy": "sk-greedy-0123456789abcdef"}
GREEDY = 60  # requests at once
MODEST = 8  # one after the other
ADVANCE = {"fairness": {"most_advance_s": 2.0}}


def prompt(number: int, tokens: int) -> list[int]:
    return [5 + (number * 31 + i * 17) % 1000 for i in range(tokens)]


async def first_token_s(client: Client, ids: list[int]) -> float:
    first_s = 0.0
    async for event in client.complete(ids, max_tokens=8, temperature=0):
        if isinstance(event, Token):
            first_s = first_s or event.at_s
    return first_s


async def together(url: str) -> tuple[list[float], list[float]]:
    """Times to first token of the modest tenant and of the greedy one."""
    async with (
        Client(url, api_key=KEYS["modest"]) as modest,
        Client(url, api_key=KEYS["greedy"]) as greedy,
        asyncio.TaskGroup() as group,
    ):
        await first_token_s(modest, prompt(999, 100))
        flood = [
            group.create_task(first_token_s(greedy, prompt(number, 300)))
            for number in range(GREEDY)
        ]
        await asyncio.sleep(0)
        waits = [
            await first_token_s(modest, prompt(1000 + number, 100))
            for number in range(MODEST)
        ]
        return waits, list(await asyncio.gather(*flood))


@pytest.mark.slow  # tests/twin/test_greedy_neighbours.py has the same in simulation
@pytest.mark.timeout(600)  # for a machine that is busy with other things
async def test_a_greedy_tenant_waits_for_itself(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("\n".join(f"{tenant} {key}" for tenant, key in KEYS.items()))
    scheduler = shipped_args()["scheduler"] | ADVANCE
    args = (
        shipped_args()
        | WATCHED
        | {"scheduler": scheduler, "api_keys": {"file": str(file)}}
    )
    with serving(tmp_path, **args) as (url, _):
        modest, greedy = await together(url)
        headers = {"authorization": f"Bearer {KEYS['modest']}"}
        async with httpx.AsyncClient() as http:
            metrics = (await http.get(f"{url}/metrics", headers=headers)).text
    print(f"modest {sorted(modest)}, greedy {sorted(greedy)}")
    # the flood is there before the first of the modest one's, and its last waits for all of it
    assert max(modest) < max(greedy) / 2
    for tenant in KEYS:
        [line] = [
            line
            for line in metrics.splitlines()
            if line.startswith("medha_tenant_prefill_seconds_total")
            and f'"{tenant}"' in line
        ]
        assert float(line.split()[-1]) > 0
