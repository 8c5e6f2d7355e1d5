"""What the actors of a grid are to be, and what they say of themselves. Pure: the controller needs
no torch to know it."""

from __future__ import annotations

import msgspec

from medha_actors.actors.cells import Cell, Shape
from medha_actors.config import MedhaConfig
from medha_actors.model_spec import ModelSpec


class Place(msgspec.Struct, frozen=True):
    """Where an actor turned out to run."""

    node_id: str
    cores: tuple[int, ...]
    free_bytes: int  # memory that KV caches could use: of the GPU, or of the host
    gpu: str | None  # its name
    gpu_id: str = ""  # which one of its node
    obstacle: str = ""  # why this actor cannot compute; empty: it can
    dtype: str = "float32"  # what "auto" is here

    @property
    def on(self) -> tuple[str, str]:
        """Which GPU of all nodes; of a CPU its node."""
        return self.node_id, self.gpu_id


def shape_of(config: MedhaConfig) -> Shape:
    """The grid that is asked for."""
    return Shape(config.parallel.spp, config.parallel.kvp, config.parallel.tp)


class StagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What one actor of the grid is to be."""

    config: MedhaConfig
    spec: ModelSpec
    cell: Cell
    layers: tuple[int, int]
    pages: int
    cores: tuple[int, ...]  # empty: not pinned
    device: str
    dtype: str
    slots: int = 0
    run: str = ""
    borrowed: tuple[int, ...] = ()  # cores of other stages, when these do not compute

    @property
    def shape(self) -> Shape:
        return shape_of(self.config)


class Identity(msgspec.Struct, frozen=True):
    """What an actor is, for a controller that finds it at work."""

    place: Place
    plan: StagePlan | None  # None: a spare
    kept: bytes  # what the controller before gave it to keep


class Blueprint(msgspec.Struct, frozen=True, kw_only=True):
    """What the actors of a grid are to be. `config`: as it was asked for, fitted to the GPUs that
    are there; `pages`, `slots`: of each KV group, on the device and in the second tier; `run`: a
    name for the files of this one, as no other grid has."""

    asked: MedhaConfig
    config: MedhaConfig
    spec: ModelSpec
    device: str
    dtype: str
    layers: list[tuple[int, int]]
    pages: int
    nodes: dict[Cell, str]
    cores: dict[Cell, tuple[int, ...]]
    slots: int = 0
    run: str = ""
    gpus: tuple[str, ...] = ()  # the names of their kinds

    def plan(self, cell: Cell) -> StagePlan:
        """What the actor at `cell` is to be."""
        return StagePlan(
            config=self.config,
            spec=self.spec,
            cell=cell,
            layers=self.layers[cell.stage],
            pages=self.pages,
            cores=self.cores[cell],
            device=self.device,
            dtype=self.dtype,
            slots=self.slots,
            run=self.run,
            borrowed=self._borrowed(cell),
        )

    def _borrowed(self, cell: Cell) -> tuple[int, ...]:
        """The cores of the other stages on the cell's node."""
        parallel = self.config.parallel
        if not self.config.actors.borrow or parallel.kvp * parallel.tp > 1:
            return ()
        found: list[int] = []
        for other, cores in self.cores.items():
            if other != cell and self.nodes[other] == self.nodes[cell]:
                found += cores
        return tuple(found) if self.cores[cell] else ()


class Kept(msgspec.Struct, frozen=True):
    """What the actors keep for the controller that comes after this one. `profile`: the packed
    calibration."""

    blueprint: Blueprint
    profile: bytes
