"""The real RayEngine over a controller that is played."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from medha_actors.actors.engine import RayEngine
from medha_actors.bench.played import Answering, PlayedController, accepting


@asynccontextmanager
async def played(
    answering: Answering = accepting,
) -> AsyncIterator[tuple[RayEngine, PlayedController]]:
    controller = PlayedController(4096, answering)
    engine = RayEngine(lambda: controller, patience_s=0.01)
    await engine.start()
    try:
        yield engine, controller
    finally:
        await engine.stop()
