"""Engines whose processes go on from test to test: to start them takes longer than most tests do.

Everything else of an engine is its own: the controller's state, the placement group, the plans, the
weights, the KV caches, the links. A stage actor is loaded and linked anew, as a spare or a survivor
of a loss is. What was killed is replaced as ever, by an idle process or a new one.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec
import ray
from ray.exceptions import RayActorError

from medha_actors.actors import cluster, controller
from medha_actors.actors.cluster import Cluster
from medha_actors.actors.controller import Controller
from medha_actors.actors.crew import Crew
from medha_actors.actors.engine import RayEngine
from medha_actors.actors.plans import Blueprint
from medha_actors.core.predictor import Profile

if TYPE_CHECKING:
    from medha_actors.actors.stage import StageActor

_ANSWER_S = 10.0  # a living actor answers in this time


# A small model that answers for long.
TWO_STAGES: Final[dict[str, Any]] = {
    "model_loading_config": {
        "model_source": "random",
        "dtype": "float32",
        "max_model_len_tokens": 100_000,
    },
    "parallel": {"spp": 2},
    "actors": {"num_cpus": 0.5},
    "kv_cache": {"budget_bytes": 2**26, "page_tokens": 16},
    "predictor": {"calibrate": False},
}


class WarmCrew(Crew):
    """Takes idle processes before it starts new ones; `idle`: by the class that they run."""

    idle: ClassVar[dict[str, list[Any]]] = defaultdict(list)

    @classmethod
    async def muster(cls) -> None:
        """Unpin everybody, and forget whoever has died."""
        for kind, actors in cls.idle.items():
            living = await asyncio.gather(*[_unpinned(actor) for actor in actors])
            cls.idle[kind] = [
                one for one, lives in zip(actors, living, strict=True) if lives
            ]

    def rest(self) -> None:
        """Let everybody go, to be taken again."""
        self._idle.extend([*self.actors.values(), *[spare for spare, _ in self.spares]])
        self.actors = {}
        self.spares = []

    @property
    def _idle(self) -> list[Any]:
        return self.idle[getattr(self._stage_class, "__name__", "StageActor")]

    def _spawn(self, **options: Any) -> Any:
        # A process that is to outlive its placement group is none of it.
        return self._idle.pop() if self._idle else super()._spawn(num_cpus=0)


class WarmCluster(Cluster):
    """`current`: the grid of now."""

    current: ClassVar[WarmCluster]

    def __init__(
        self, crew: WarmCrew, blueprint: Blueprint, profile: bytes = b""
    ) -> None:
        super().__init__(crew, blueprint, profile)
        WarmCluster.current = self


class WarmController(Controller):
    """A process of one controller after the other."""

    def __init__(self) -> None:
        cluster.Crew = WarmCrew
        controller.Cluster = WarmCluster

    async def begin(self, args: dict[str, Any], stage_class: Any) -> None:
        """A new controller; of the one before it nothing is left."""
        super().__init__(args)
        self.stage_class = stage_class
        self.replicas: list[str] = []
        await WarmCrew.muster()

    async def stream(self, replica: str) -> AsyncIterator[bytes]:
        self.replicas.append(replica)
        async for packed in super().stream(replica):
            yield packed

    async def pids(self) -> list[int]:
        """The processes of the grid, in the order of cells: the groups of stage 0 first."""
        actors = WarmCluster.current.crew.actors
        calls = [actors[cell].__ray_call__.remote(_pid) for cell in sorted(actors)]
        return await asyncio.gather(*calls)

    async def profile(self) -> Profile:
        """What was measured at the start."""
        return msgspec.msgpack.decode(WarmCluster.current.profile, type=Profile)

    async def stop(self) -> None:
        for replica in self.replicas:
            await self.leave(replica)
        if self._pipeline is not None:
            WarmCluster.current.crew.rest()
        await super().stop()


def _pid(_: StageActor) -> int:
    return os.getpid()


def _unpin(stage: StageActor) -> None:
    os.sched_setaffinity(0, stage.locate().cores)


async def _unpinned(actor: Any) -> bool:
    """Whether it lives, and then on all cores."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            await actor.__ray_call__.remote(_unpin)
    except (RayActorError, TimeoutError):
        return False
    return True


def _spawn() -> Any:
    return ray.remote(WarmController).options(num_cpus=0, max_concurrency=1000).remote()


class Warm:
    """One engine at a time."""

    def __init__(self) -> None:
        self.controller = _spawn()

    @asynccontextmanager
    async def engine(
        self, args: dict[str, Any], stage_class: Any = None
    ) -> AsyncIterator[RayEngine]:
        """A started engine, which ends afterwards."""
        try:
            await self.controller.begin.remote(args, stage_class)
        except RayActorError:  # a test has failed so that its process ended
            self.controller = _spawn()
            await self.controller.begin.remote(args, stage_class)
        handle = RayEngine(lambda: self.controller)
        try:
            await handle.start()
            yield handle
        finally:
            await handle.stop()
            await self.controller.stop.remote()

    async def pids(self) -> list[int]:
        """The processes of the stage actors, in the order of cells: the groups of stage 0 first."""
        return await self.controller.pids.remote()

    async def profile(self) -> Profile:
        """What the engine has measured at its start."""
        return await self.controller.profile.remote()
