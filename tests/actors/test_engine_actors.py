"""The real engine keeps its contract; one grid, and a handle for each check as each replica has
one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import pytest
import ray

from medha_actors.actors.controller import Controller
from medha_actors.actors.engine import RayEngine
from tests.actors.warm import TWO_STAGES
from tests.engine_contract import CHECKS


@pytest.fixture(scope="module")
def controller(cluster: None) -> Iterator[Any]:
    actor_class: Any = ray.remote(Controller)
    controller = actor_class.options(num_cpus=0, max_concurrency=1000).remote(
        TWO_STAGES
    )
    yield controller
    ray.get(controller.stop.remote())
    ray.kill(controller)


@pytest.fixture
async def engine(controller: Any) -> AsyncIterator[RayEngine]:
    engine = RayEngine(lambda: controller)
    await engine.start()
    yield engine
    await engine.stop()


@pytest.mark.parametrize("check", CHECKS)
async def test_the_contract(check: Any, engine: RayEngine, controller: Any) -> None:
    await check(engine)
    async with asyncio.timeout(60):  # what was in flight comes back first
        while not idle(msgspec.msgpack.decode(await controller.stats.remote())):
            pass


def idle(stats: dict[str, Any]) -> bool:
    return stats["running"] == stats["waiting"] == stats["kv_usage"] == 0
