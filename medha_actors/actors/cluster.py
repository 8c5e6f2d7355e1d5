"""Cluster: the grid of stage actors as one thing: loaded, linked, mended.

The controller owns one. What every actor is to be (its layers, its pages, its cores) is decided
once, in a Blueprint, and stays so whoever is replaced.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
import ray

from medha_actors.actors.building import build
from medha_actors.actors.cells import Cell
from medha_actors.actors.crew import Crew
from medha_actors.actors.layout import (
    assign_cores,
    described,
    fitted,
    turns,
)
from medha_actors.actors.links import Endpoint, Link, dial
from medha_actors.actors.orphans import Owner
from medha_actors.actors.plans import Blueprint, Identity, Kept, Place
from medha_actors.actors.rooms import cluster_gpus, device_for
from medha_actors.config import MedhaConfig
from medha_actors.model.spec import load_spec
from medha_actors.model_spec import ModelSpec

_log = logging.getLogger("medha.cluster")
_encode = msgspec.msgpack.Encoder().encode
_decode_kept = msgspec.msgpack.Decoder(Kept).decode


class Lost(NamedTuple):
    """Groups whose KV caches are lost, and those of them whose second tiers are there still."""

    groups: set[int]
    found: set[int]


class Cluster:
    """A started grid. `first`: links to stage 0 of each group (batches out, credits in); `last`:
    from the last stage of each (results), the same links if there is one stage."""

    def __init__(self, crew: Crew, blueprint: Blueprint, profile: bytes = b"") -> None:
        """`profile`: the calibration that the actors have kept; empty: there is none."""
        self.crew = crew
        self.blueprint = blueprint
        self.profile = profile
        self.first: list[Link] = []
        self.last: list[Link] = []
        self._secret = ""  # of the last links

    @classmethod
    async def start(
        cls,
        config: MedhaConfig,
        owner: Owner | None = None,
        stage_class: Any = None,
        make_room: Callable[[], Awaitable[None]] | None = None,
    ) -> Cluster:
        """Adopt the grid that a controller of this name has left, or place, spawn, pin and load a
        new one. `make_room`: see Crew. Raises ConfigError when the resources cannot hold it,
        ModelError."""
        gpus = cluster_gpus()
        device = device_for(config, gpus)
        crew = Crew(config, device, owner, stage_class, make_room)
        found = await crew.adopt()
        kept = _kept_by(found, config)
        if kept is not None:
            crew.config = kept.blueprint.config
            crew.device = kept.blueprint.device
            cluster = cls(crew, kept.blueprint, kept.profile)
            _log.info("found %d actors at work", len(found))
            await cluster.revive()
            return cluster
        crew.dismiss()
        if device == "cuda":
            crew.config = fitted(config, gpus)
            if change := described(config, crew.config, gpus):
                _log.warning("%s", change)
        spec = await asyncio.to_thread(load_spec, config.model_loading_config)
        try:
            blueprint = await build(crew, config, spec)
        except BaseException:
            crew.dismiss()
            raise
        return cls(crew, blueprint)

    @property
    def config(self) -> MedhaConfig:
        return self.blueprint.config

    @property
    def spec(self) -> ModelSpec:
        return self.blueprint.spec

    @property
    def credits_apart(self) -> bool:
        """Whether stage 0 asks for its next batch in a frame of its own. A lone stage on a CPU does
        it with the result; a GPU takes a batch while it computes another."""
        return self.crew.shape.stages > 1 or self.blueprint.device != "cpu"

    @property
    def pages(self) -> int:
        """Pages of each KV group."""
        return self.blueprint.pages

    @property
    def slots(self) -> int:
        """Pages of each KV group's second tier."""
        return self.blueprint.slots

    async def revive(self, everything: bool = False) -> Lost:
        """Replace the actors that are dead (or all); returns what is lost with them. Then:
        `link`."""
        self.hang_up()
        cells = list(self.crew.shape.cells())
        if everything:
            self.crew.dismiss()
            await self.crew.hire()
            places = await self.crew.everybody("locate")
            self._move(places)
            dead = cells
        else:
            dead = await self.crew.dead()
            nodes = self.blueprint.nodes
            places = await self.crew.refill(dead, nodes)
            if any(place.node_id != nodes[cell] for cell, place in places.items()):
                self._move(await self.crew.everybody("locate"))
        plans = {cell: (_encode(self.blueprint.plan(cell)),) for cell in dead}
        await self.crew.call("load", plans)
        if self.profile and dead:
            await self.keep(self.profile)
        groups = {cell.group for cell in dead}
        if self.config.kv_cache.disk is None or not self.slots:
            return Lost(groups, set())
        marks = await self.crew.call("tier_mark", dict.fromkeys(dead, ()))
        strange = {
            cell.group
            for cell in dead
            if not marks[cell] or marks[cell] != self._secret
        }
        return Lost(groups, groups - strange)

    async def link(self) -> None:
        """Connect the actors with each other and with this process, and let them serve."""
        secret = await self._connect()
        await self.crew.everybody("serve", secret)
        self._secret = secret

    async def _connect(self) -> str:
        """Returns what those who are linked know each other by."""
        secret = secrets.token_hex(16)
        shape = self.crew.shape
        endpoints: dict[Cell, Endpoint] = await self.crew.everybody("listen")

        def nearby(cells: list[Cell]) -> bool:
            nodes = {endpoints[cell].node_id for cell in cells}
            return self.blueprint.device == "cpu" and len(cells) > 1 and len(nodes) == 1

        connections = {}
        for cell in shape.cells():
            targets = [(other, endpoints[other]) for other in shape.dials(cell)]
            groups = [cell._replace(group=group) for group in range(shape.groups)]
            ranks = shape.team(cell.stage, cell.group)
            connections[cell] = (secret, targets, (nearby(groups), nearby(ranks)))
        await self.crew.call("connect", connections)
        node = ray.get_runtime_context().get_node_id()

        def links_to(stage: int) -> list[Link]:
            ends = [endpoints[Cell(stage, group)] for group in range(shape.groups)]
            return [dial(end, node, secret, None) for end in ends]

        self.first = links_to(0)
        self.last = self.first if shape.stages == 1 else links_to(shape.stages - 1)
        await self.crew.everybody("accept", secret)
        return secret

    async def keep(self, profile: bytes) -> None:
        """Have the actors keep what the controller after this one needs to go on with them."""
        self.profile = profile
        await self.crew.everybody("keep", _encode(Kept(self.blueprint, profile)))

    async def computes(self) -> list[str]:
        """What computes in the actors, each kind once."""
        return sorted(set((await self.crew.everybody("computes")).values()))

    async def fill(self, pages: int) -> None:
        """Write noise into the first pages of every KV pool."""
        await self.crew.everybody("fill", pages)

    async def measure(
        self, steps: list[bytes], repeats: int, apart: bool = False
    ) -> list[list[float]]:
        """Seconds of synthetic steps, per stage, measured on group 0 with all stages at work
        together (`apart`: one after the other; those that share a GPU in turns); `steps`: what each
        stage computes, packed. Leaves the grid unlinked."""
        shape = self.crew.shape
        if shape.ranks > 1:
            await self._connect()
        measured: dict[Cell, list[float]] = {}
        every = range(shape.stages)
        for stages in [[stage] for stage in every] if apart else await self._turns():
            calls: dict[Cell, tuple[bytes, int]] = {}
            for stage in stages:
                calls |= dict.fromkeys(shape.team(stage, 0), (steps[stage], repeats))
            measured |= await self.crew.call("measure", calls)
        self.hang_up()
        return [measured[Cell(stage, 0)] for stage in range(len(steps))]

    async def _turns(self) -> list[list[int]]:
        """Stages that can be measured together: each has its processors to itself."""
        shape = self.crew.shape
        if self.blueprint.device == "cpu":
            return [list(range(shape.stages))]
        places: dict[Cell, Place] = await self.crew.everybody("locate")
        teams = [shape.team(stage, 0) for stage in range(shape.stages)]
        return turns([{places[cell].on for cell in team} for team in teams])

    async def hire_spares(self) -> None:
        """Have warm processes ready on the nodes of the grid."""
        await self.crew.hire_spares(self.blueprint.nodes.values())

    def stop(self) -> None:
        """Kill the actors and give the resources back."""
        self.hang_up()
        self.crew.dismiss()

    def hang_up(self) -> None:
        """Close the links to the stages, which stop serving and close theirs."""
        for link in (*self.first, *self.last):
            link.close()
        self.first = []
        self.last = []

    def _move(self, places: dict[Cell, Place]) -> None:
        """The actors may run elsewhere now; what they hold stays as it was."""
        nodes = {cell: place.node_id for cell, place in places.items()}
        cores = assign_cores(places, self.config)
        self.blueprint = msgspec.structs.replace(
            self.blueprint, nodes=nodes, cores=cores
        )


def _kept_by(found: dict[Cell, Identity], config: MedhaConfig) -> Kept | None:
    """What the actors found at work were made from; None if it was not this configuration."""
    for identity in found.values():
        if identity.kept:
            kept = _decode_kept(identity.kept)
            return kept if kept.blueprint.asked == config else None
    return None
