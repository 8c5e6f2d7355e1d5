"""Cluster: the grid of stage actors, from placement group to linked and loaded pipeline, and its
end.

The controller owns one. Everything is made anew by `start` after `stop`: the way back from a dead
actor.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import ray
import torch
from ray.exceptions import RayActorError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from medha_actors.actors.capacity import pages_of
from medha_actors.actors.links import Endpoint, Hello, Link, dial
from medha_actors.actors.stage import Place, StageActor, StagePlan
from medha_actors.config import MedhaConfig
from medha_actors.errors import ConfigError, EngineError
from medha_actors.model.spec import ModelSpec, split_layers

_log = logging.getLogger("medha.cluster")
_encode = msgspec.msgpack.Encoder().encode
_ROOM_S = 2.0  # where there is room, Ray has reserved it by then
_ANSWER_S = 10.0  # a living actor answers in this time


class Cluster:
    """N stages by K groups of StageActor. `actors[stage][group]`."""

    def __init__(self, config: MedhaConfig, spec: ModelSpec, device: str, dtype: str) -> None:
        self.config, self.spec, self.device, self.dtype = config, spec, device, dtype
        self._dtype = getattr(torch, dtype)
        self.layers = split_layers(spec, config.parallel.spp)
        self.actors: list[list[Any]] = []
        self.pages = 0
        self.first: list[Link] = []  # to stage 0 of each group: batches out, credits in
        self.last: list[Link] = []  # from the last stage of each group: results
        self._cores: list[list[tuple[int, ...]]] = []
        self._group: PlacementGroup | None = None

    async def start(self, make_room: Callable[[], Awaitable[None]] | None = None) -> None:
        """Place, spawn, pin, load; raises ConfigError when the resources cannot hold the grid.

        `make_room` is called, and waited for, where the cluster has no room for the grid now.
        """
        began = time.monotonic()
        parallel = self.config.parallel
        await self._reserve(make_room)
        remote = ray.remote(StageActor)
        self.actors = [
            [self._spawn(remote, s, k) for k in range(parallel.kvp)] for s in range(parallel.spp)
        ]
        places = await self._all("locate", lambda s, k: (self.device,))
        self._cores = assign_cores(places, self.config)
        self.pages = pages_of(self.config, self.spec, self.layers, self._dtype, places)
        resident = await self._all(
            "load", lambda s, k: (_encode(self._plan(s, k, self._cores[s][k])),)
        )
        _log.info(
            "%d x %d actors on %s, %d pages of %d tokens per group, %.0f MiB resident, loaded in %.1f s",
            parallel.spp,
            parallel.kvp,
            sorted({place.gpu or "cpu" for row in places for place in row}),
            self.pages,
            self.config.kv_cache.page_tokens,
            sum(map(sum, resident)) / 2**20,
            time.monotonic() - began,
        )

    async def revive(self, everything: bool = False) -> set[int]:
        """Replace the actors that are dead (or all); returns the groups whose KV caches are lost.
        Then: `link`."""
        self.hang_up()
        if everything:
            await self.stop()
            await self.start()
            return set(range(self.config.parallel.kvp))
        calls = [
            (s, k, actor.locate.remote(self.device))
            for s, row in enumerate(self.actors)
            for k, actor in enumerate(row)
        ]
        dead = []
        for stage, group, call in calls:
            try:
                await asyncio.wait_for(call, _ANSWER_S)
            except (RayActorError, TimeoutError):
                dead.append((stage, group))
        for stage, group in dead:
            ray.kill(self.actors[stage][group])
            self.actors[stage][group] = self._spawn(ray.remote(StageActor), stage, group)
        replaced = [(s, k, self.actors[s][k]) for s, k in dead]
        await asyncio.gather(*[actor.locate.remote(self.device) for _, _, actor in replaced])
        await asyncio.gather(
            *[
                actor.load.remote(_encode(self._plan(s, k, self._cores[s][k])))
                for s, k, actor in replaced
            ]
        )
        return {group for _, group in dead}

    async def link(self) -> None:
        """Connect the actors with each other and with this process, and let them serve."""
        secret = secrets.token_hex(16)
        stages, groups = self.config.parallel.spp, self.config.parallel.kvp
        endpoints: list[list[Endpoint]] = await self._all("listen", lambda s, k: ())

        def outgoing(s: int, k: int) -> tuple[str, Endpoint | None, dict[int, Endpoint], bool]:
            following = endpoints[s + 1][k] if s + 1 < stages else None
            shared = (
                self.device == "cpu" and groups > 1 and len({e.node_id for e in endpoints[s]}) == 1
            )
            return (
                secret,
                following,
                {peer: endpoints[s][peer] for peer in range(k + 1, groups)},
                shared,
            )

        await self._all("connect", outgoing)
        node, hello = ray.get_runtime_context().get_node_id(), Hello(secret, "control")
        self.first = [dial(endpoint, node, hello) for endpoint in endpoints[0]]
        self.last = (
            self.first
            if stages == 1
            else [dial(endpoint, node, hello) for endpoint in endpoints[-1]]
        )
        # Each actor accepts: the stage before it (if any), the controller (first and last stage),
        # and earlier groups.
        await self._all("serve", lambda s, k: (secret, (s > 0) + (s in (0, stages - 1)) + k))

    async def fill(self, pages: int) -> None:
        """Write noise into the first pages of every KV pool."""
        await self._all("fill", lambda s, k: (pages,))

    async def measure(self, steps: list[list[bytes]], repeats: int) -> list[list[float]]:
        """Seconds of synthetic steps, per stage, measured on group 0 with all stages at work
        together."""
        calls = [
            self.actors[s][0].measure.remote(steps[s], repeats) for s in range(len(self.actors))
        ]
        return list(await asyncio.gather(*calls))

    async def stop(self) -> None:
        """Kill the actors and give the resources back; never raises for what is gone already."""
        self.hang_up()
        for actor in (actor for row in self.actors for actor in row):
            ray.kill(actor)
        self.actors = []
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

    def hang_up(self) -> None:
        """Close the links to the stages, which stop serving and close theirs."""
        for link in {id(link): link for link in (*self.first, *self.last)}.values():
            link.close()
        self.first, self.last = [], []

    async def _reserve(self, make_room: Callable[[], Awaitable[None]] | None) -> None:
        actors, cells = self.config.actors, self.config.parallel.spp * self.config.parallel.kvp
        bundle = {"CPU": actors.num_cpus}
        if self.device == "cuda":
            bundle["GPU"] = actors.num_gpus
        if self.config.accelerator_type:
            bundle[f"accelerator_type:{self.config.accelerator_type}"] = 0.001
        total = ray.cluster_resources()
        for name, amount in bundle.items():
            if amount * cells > total.get(name, 0.0) + 1e-6:
                raise ConfigError(
                    f"parallel: {self.config.parallel.spp} stages x {self.config.parallel.kvp} groups need "
                    f"{amount * cells:g} {name}, the cluster has {total.get(name, 0.0):g}"
                )
        strategy = self.config.placement_group_config.get("strategy", "PACK")
        self._group = placement_group([bundle] * cells, strategy=strategy)
        if make_room is not None and not await asyncio.to_thread(self._group.wait, _ROOM_S):
            await make_room()
        try:
            async with asyncio.timeout(self.config.actors.start_timeout_s):
                await self._group.ready()
        except TimeoutError:
            raise EngineError(
                f"no room for {cells} bundles of {bundle} ({strategy}) in the cluster"
            ) from None

    def _spawn(self, remote: Any, stage: int, group: int) -> Any:
        assert self._group is not None
        where = PlacementGroupSchedulingStrategy(
            placement_group=self._group,
            placement_group_bundle_index=stage * self.config.parallel.kvp + group,
        )
        return remote.options(
            num_cpus=self.config.actors.num_cpus,
            num_gpus=self.config.actors.num_gpus if self.device == "cuda" else 0,
            max_restarts=0,
            scheduling_strategy=where,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(self.config.actors.threads)}},
        ).remote()

    def _plan(self, stage: int, group: int, cores: tuple[int, ...]) -> StagePlan:
        return StagePlan(
            config=self.config,
            spec=self.spec,
            stage=stage,
            group=group,
            layers=self.layers[stage],
            pages=self.pages,
            cores=cores,
            device=self.device,
            dtype=self.dtype,
        )

    async def _all(self, method: str, arguments: Any) -> Any:
        """Call one method on every actor at once; results in the shape of the grid."""
        calls = [
            [getattr(actor, method).remote(*arguments(s, k)) for k, actor in enumerate(row)]
            for s, row in enumerate(self.actors)
        ]
        async with asyncio.timeout(self.config.actors.start_timeout_s):
            return [list(await asyncio.gather(*row)) for row in calls]


def assign_cores(places: list[list[Place]], config: MedhaConfig) -> list[list[tuple[int, ...]]]:
    """Distinct cores for the CPU actors of each node, or none where there are fewer cores than
    threads."""
    threads, taken = config.actors.threads, dict[str, int]()
    wanted: dict[str, int] = {}
    for place in (place for row in places for place in row):
        wanted[place.node_id] = wanted.get(place.node_id, 0) + threads

    def take(place: Place) -> tuple[int, ...]:
        if (
            not config.actors.pin
            or place.gpu is not None
            or wanted[place.node_id] > len(place.cores)
        ):
            return ()
        start = taken.get(place.node_id, 0)
        taken[place.node_id] = start + threads
        return place.cores[start : start + threads]

    return [[take(place) for place in row] for row in places]
