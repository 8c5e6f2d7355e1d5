"""Crew: the processes of one grid. Placed, spawned, found again, replaced, ended.

With an owner (the controller's own name) the actors are detached: they outlive the controller, and
the next one of the same name adopts them with the weights they hold. Without one they end with it.
A controller that was put into a placement group (a fleet's grid) has its room there.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from medha_actors.actors.cells import Cell, Shape
from medha_actors.actors.orphans import Owner
from medha_actors.actors.plans import Identity, Place, shape_of
from medha_actors.actors.rooms import (
    bundles_of,
    check_fits,
    given_room,
    gpus_of_actor,
    strategy_of,
)
from medha_actors.config import MedhaConfig
from medha_actors.errors import EngineError

_log = logging.getLogger("medha.cluster")
_decode_identity = msgspec.msgpack.Decoder(Identity).decode
_ROOM_S = 2  # where there is room, Ray has reserved it by then
_ANSWER_S = 10.0  # a living actor answers in this time
_TRIES = 3  # to put somebody at a cell: a node may die while another is mended
_NAMESPACE = "medha"
T = TypeVar("T")


class Crew:
    """`actors`: who works at each cell. `spares`: warm processes without a stage, and their
    nodes."""

    def __init__(
        self,
        config: MedhaConfig,
        device: str,
        owner: Owner | None,
        stage_class: Any = None,
        make_room: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`stage_class`: StageActor, or what stands in for it; None: StageActor, which is imported
        (and torch with it) when the first one is spawned. `make_room` is called, and waited for,
        where the cluster has no room for the grid now."""
        self.config = config
        self.device = device
        self.actors: dict[Cell, Any] = {}
        self.spares: list[tuple[Any, str]] = []
        self._owner = owner
        self._make_room = make_room
        self._stage_class = stage_class
        # Of somebody else, who gives it back
        self._given = given_room()
        self._room: PlacementGroup | None = None

    @property
    def shape(self) -> Shape:
        return shape_of(self.config)

    async def hire(self) -> None:
        """Reserve room and spawn an actor for every cell; raises ConfigError when the cluster
        cannot hold the grid."""
        await self._reserve()
        for cell in self.shape.cells():
            self.actors[cell] = self._spawn_at(cell)

    async def adopt(self) -> dict[Cell, Identity]:
        """Take over the actors that a controller of this name has left; the ones with a stage, by
        cell. Whatever does not answer is ended."""
        if self._owner is None:
            return {}
        prefix = f"{self._owner.name}:"
        named = [
            entry["name"]
            for entry in ray.util.list_named_actors(all_namespaces=True)
            if entry["namespace"] == _NAMESPACE and entry["name"].startswith(prefix)
        ]
        handles = [handle for name in named if (handle := _handle(name)) is not None]
        answers = await asyncio.gather(
            *[_answer(one.identify.remote()) for one in handles]
        )
        found: dict[Cell, Identity] = {}
        for handle, packed in zip(handles, answers, strict=True):
            if packed is None:
                ray.kill(handle)
                continue
            identity = _decode_identity(packed)
            if identity.plan is None:
                self.spares.append((handle, identity.place.node_id))
            else:
                self.actors[identity.plan.cell] = handle
                found[identity.plan.cell] = identity
        if found:
            self._room = self._given or ray.util.get_placement_group(self._owner.name)
        return found

    async def dead(self) -> list[Cell]:
        """The cells whose actors do not answer, or cannot compute any more."""
        cells = list(self.actors)
        calls = [_answer(self.actors[cell].locate.remote()) for cell in cells]
        places = await asyncio.gather(*calls)
        missing = [cell for cell in self.shape.cells() if cell not in self.actors]
        useless = []
        for cell, place in zip(cells, places, strict=True):
            if place is None or place.obstacle:
                useless.append(cell)
                _log.warning(
                    "%s is dead: %s", cell, place.obstacle if place else "no answer"
                )
        return [*missing, *useless]

    async def refill(
        self, dead: Iterable[Cell], nodes: Mapping[Cell, str]
    ) -> dict[Cell, Place]:
        """Put a spare of its node at each of these cells, or else a new actor; returns where they
        run. Ray takes some seconds to know that a node has died. An actor that it puts there
        meanwhile never runs; the one after it is where the cell's bundle has been moved to."""
        self.spares = await self._living_spares()
        places: dict[Cell, Place] = {}
        missing = list(dead)
        for _ in range(_TRIES):
            for cell in missing:
                self._put_at(cell, nodes[cell])
            found = await self._locate(missing)
            places |= found
            missing = [cell for cell in missing if cell not in found]
            if not missing:
                return places
        raise EngineError(f"whoever is put at {missing} dies")

    def _put_at(self, cell: Cell, node_id: str) -> None:
        if cell in self.actors:
            ray.kill(self.actors[cell])
        for number, (spare, node) in enumerate(self.spares):
            if node == node_id:
                self.actors[cell] = spare
                del self.spares[number]
                return
        self.actors[cell] = self._spawn_at(cell)

    async def _locate(self, cells: list[Cell]) -> dict[Cell, Place]:
        """Where those of these cells run that have not died; waits until they have started."""
        calls = [self.actors[cell].locate.remote() for cell in cells]
        async with asyncio.timeout(self.config.actors.start_timeout_s):
            found = await asyncio.gather(*calls, return_exceptions=True)
        places: dict[Cell, Place] = {}
        for cell, place in zip(cells, found, strict=True):
            if isinstance(place, RayActorError):
                _log.warning("%s died before it began: %s", cell, place)
            elif isinstance(place, BaseException):
                raise place
            else:
                places[cell] = place
        return places

    async def hire_spares(self, nodes: Iterable[str]) -> None:
        """Have `actors.spares` warm processes on each of these nodes. A spare knows no GPU, so
        there are none for CUDA."""
        if self.device != "cpu":
            return
        self.spares = await self._living_spares()
        for node_id in sorted(set(nodes)):
            present = [spare for spare, node in self.spares if node == node_id]
            for _ in range(self.config.actors.spares - len(present)):
                self.spares.append((self._spawn_spare(node_id), node_id))

    async def _living_spares(self) -> list[tuple[Any, str]]:
        calls = [_answer(spare.locate.remote()) for spare, _ in self.spares]
        places = await asyncio.gather(*calls)
        return [
            spare
            for spare, place in zip(self.spares, places, strict=True)
            if place is not None
        ]

    async def call(
        self, method: str, arguments: dict[Cell, tuple[Any, ...]]
    ) -> dict[Cell, Any]:
        """Call one method on the actors of these cells at once; their results by cell."""
        calls = [
            getattr(self.actors[cell], method).remote(*own)
            for cell, own in arguments.items()
        ]
        async with asyncio.timeout(self.config.actors.start_timeout_s):
            results = await asyncio.gather(*calls)
        return dict(zip(arguments, results, strict=True))

    async def everybody(self, method: str, *arguments: Any) -> dict[Cell, Any]:
        """Call one method with the same arguments on every actor."""
        return await self.call(method, dict.fromkeys(self.actors, arguments))

    def dismiss(self) -> None:
        """Kill everybody and give the room back; never raises for what is gone already."""
        for actor in (*self.actors.values(), *[spare for spare, _ in self.spares]):
            ray.kill(actor)
        self.actors = {}
        self.spares = []
        if self._room is not None and self._given is None:
            remove_placement_group(self._room)
        self._room = None

    async def _reserve(self) -> None:
        """Have room for everybody: what this process was given, or what it makes."""
        self._room = self._given
        if self._room is not None:
            return
        bundles = bundles_of(self.config, self.device)
        check_fits(self.config, bundles)
        strategy = strategy_of(self.config)
        self._room = placement_group(
            bundles, strategy=strategy, **self._detached_room()
        )
        if self._make_room is not None and not await asyncio.to_thread(
            self._room.wait, _ROOM_S
        ):
            await self._make_room()
        try:
            async with asyncio.timeout(self.config.actors.start_timeout_s):
                await self._room.ready()
        except TimeoutError:
            raise EngineError(
                f"no room for {len(bundles)} bundles of {bundles[0]} ({strategy}) in the cluster"
            ) from None

    def _detached_room(self) -> dict[str, Any]:
        if self._owner is None:
            return {}
        return {"name": self._owner.name, "lifetime": "detached"}

    def _spawn_at(self, cell: Cell) -> Any:
        assert self._room is not None, "reserved or adopted before"
        actors = self.config.actors
        where = PlacementGroupSchedulingStrategy(
            placement_group=self._room,
            placement_group_bundle_index=cell.stage * self.shape.groups + cell.group,
        )
        gpus = gpus_of_actor(self.config) if self.device == "cuda" else 0
        return self._spawn(
            num_cpus=actors.num_cpus, num_gpus=gpus, scheduling_strategy=where
        )

    def _spawn_spare(self, node_id: str) -> Any:
        where = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
        return self._spawn(num_cpus=0, scheduling_strategy=where)

    def _spawn(self, **options: Any) -> Any:
        if self._owner is not None:
            options["name"] = f"{self._owner.name}:{secrets.token_hex(6)}"
            options["namespace"] = _NAMESPACE
            options["lifetime"] = "detached"
        if self._stage_class is None:
            from medha_actors.actors.stage import StageActor

            self._stage_class = StageActor
        threads = str(self.config.actors.threads or 1)
        options["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": threads}}
        remote = ray.remote(self._stage_class).options(max_restarts=0, **options)
        return remote.remote(self.device, self._owner)


def _handle(name: str) -> Any:
    try:
        return ray.get_actor(name, namespace=_NAMESPACE)
    except ValueError:  # it has ended meanwhile
        return None


async def _answer(call: Awaitable[T]) -> T | None:
    """What a living actor answers; None if it is dead, fails or does not."""
    try:
        async with asyncio.timeout(_ANSWER_S):
            return await call
    except (RayError, TimeoutError):
        return None
