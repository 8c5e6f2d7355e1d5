"""An engine whose controller is found by its name, made anew when it is gone, and can be broken."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import ray

from medha_actors.actors.controller import Controller
from medha_actors.actors.engine import RayEngine
from medha_actors.actors.orphans import Owner
from medha_actors.actors.pipeline import Pipeline
from medha_actors.messages import Accepted, Rejected, Request

NAMESPACE = "breakable"


POISON = "poison"  # the id of a request that no controller survives


class BreakableController(Controller):
    """Breaks one of its parts on demand, and at a certain request."""

    async def _start(self) -> Pipeline:
        pipeline = await super()._start()
        add = pipeline.scheduler.add

        def deadly(request: Request, now: float) -> Accepted | Rejected:
            if request.id == POISON:
                raise ZeroDivisionError("poisoned")
            return add(request, now)

        pipeline.scheduler.add = deadly
        return pipeline

    async def pid(self) -> int:
        return os.getpid()

    async def break_part(self, part: str) -> None:
        """The next use of a part of the scheduler or the pipeline fails as nobody foresaw."""
        pipeline = self._pipeline
        assert pipeline is not None
        owner = pipeline if hasattr(pipeline, part) else pipeline.scheduler

        def fail(*args: Any, **kwargs: Any) -> None:
            raise ZeroDivisionError(f"{part} is broken")

        setattr(owner, part, fail)


class Service:
    """Looks for the controller as Serve would have it."""

    def __init__(self, args: dict[str, Any]) -> None:
        self.name = f"controller-{secrets.token_hex(4)}"
        self.args = args
        self.made = 0

    def find(self) -> Any:
        """The controller of this name; a new one if there is none."""
        try:
            return ray.get_actor(self.name, namespace=NAMESPACE)
        except ValueError:
            self.made += 1
        owner = Owner(self.name, NAMESPACE, 60.0)
        return (
            ray.remote(BreakableController)
            .options(
                name=self.name,
                namespace=NAMESPACE,
                num_cpus=0,
                max_concurrency=1000,
                lifetime="detached",
                get_if_exists=True,
            )
            .remote(self.args, owner)
        )


@asynccontextmanager
async def breakable(args: dict[str, Any]) -> AsyncIterator[tuple[RayEngine, Service]]:
    """A started engine, and where its controllers come from."""
    service = Service(args)
    handle = RayEngine(service.find, patience_s=120.0)
    try:
        await handle.start()
        yield handle, service
    finally:
        await handle.stop()
        controller = service.find()
        await controller.ready.remote()
        await controller.stop.remote()
        ray.kill(controller)
