"""Grids tell of themselves along their event streams, and go on for each other: real controllers
and stage actors, without Serve."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Collection, Iterator
from typing import Any

import pytest
import ray

from deployments.fleet.engine import FleetEngine
from deployments.fleet.seat import Seat
from medha_actors.actors.controller import Controller
from medha_actors.actors.engine import RayEngine
from medha_actors.fleet.views import Ask
from medha_actors.fleet_config import RoutingConfig
from tests.actors.warm import TWO_STAGES
from tests.engine_contract import Heard, ask, asking

ARGS: dict[str, Any] = {
    **TWO_STAGES,
    "parallel": {"spp": 1},
    "kv_cache": {"budget_bytes": 2**27, "page_tokens": 16},
    "fleet": {"num_grids": 2, "routing": {"period_s": 0.05}},
}


@pytest.fixture(scope="module")
def controllers(cluster: None) -> Iterator[dict[str, Any]]:
    actor_class: Any = ray.remote(Controller)
    made = {
        name: actor_class.options(num_cpus=0, max_concurrency=1000).remote(ARGS)
        for name in "ab"
    }
    yield made
    for controller in made.values():
        ray.kill(controller)


class Attached:
    """Two grids behind one router."""

    def __init__(self, controllers: dict[str, Any]) -> None:
        # a grid without calibration knows what prefills take only after some of them
        self.seat = Seat(RoutingConfig(router="prefix"), random.Random(0))
        self.told: dict[str, int] = dict.fromkeys(controllers, 0)
        self.fleet = FleetEngine(self._pick, "smollm2-135m-instruct", 16)
        self.engines: dict[str, RayEngine] = {}
        self._news = asyncio.Event()
        for name, controller in controllers.items():

            def hear(notice: Any, name: str = name) -> None:
                assert self.seat.heard(name, notice)
                self.told[name] += 1
                self._news.set()

            self.engines[name] = RayEngine(lambda one=controller: one, hear=hear)

    async def start(self) -> None:
        for name, engine in self.engines.items():
            await engine.start()
            self.fleet.join(name, engine)

    async def hear(self, times: int) -> None:
        """Every grid tells so often from now on."""
        wanted = {name: told + times for name, told in self.told.items()}
        async with asyncio.timeout(60):
            while any(self.told[name] < count for name, count in wanted.items()):
                self._news.clear()
                await self._news.wait()

    async def _pick(self, ask: Ask, left_out: Collection[str]) -> str | None:
        names = [name for name in self.fleet.grids if name not in left_out]
        choice = self.seat.choose(ask, names)
        return None if choice is None else choice.grid


@pytest.fixture
async def attached(controllers: dict[str, Any]) -> AsyncIterator[Attached]:
    attached = Attached(controllers)
    await attached.start()
    await attached.hear(2)
    yield attached
    await attached.fleet.stop()


async def whole(fleet: FleetEngine, name: str, prompt: int = 400) -> Heard:
    heard = await ask(fleet, asking(name, 8, prompt=prompt))
    async with asyncio.timeout(60):
        await heard.end()
    heard.check_whole()
    return heard


async def test_a_second_turn_goes_where_the_first_one_was(attached: Attached) -> None:
    """asking() always has the same prompt: from the second one on it is warm somewhere."""
    first = await whole(attached.fleet, "warm-0")
    await attached.hear(2)
    second = await whole(attached.fleet, "warm-1")
    assert second.tokens == first.tokens
    assert second.last.cached_tokens >= 384


async def test_a_grid_that_is_lost_leaves_its_requests_to_the_other(
    attached: Attached, controllers: dict[str, Any]
) -> None:
    expected = await whole(attached.fleet, "alone")
    long = await ask(attached.fleet, asking("long", 200, prompt=400))
    await long.until(5)
    name = next(n for n, engine in attached.engines.items() if engine.live)
    ray.kill(controllers[name])
    await attached.fleet.lost(name, attached.engines[name])
    async with asyncio.timeout(60):
        await long.end()
    long.check_whole()
    assert long.tokens[:8] == expected.tokens
