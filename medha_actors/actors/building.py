"""Building: a new grid of stage actors, from nothing to actors that have loaded their layers and
caches."""

from __future__ import annotations

import logging
import secrets
import time

import msgspec

from medha_actors.actors.capacity import measured_pages, pages_of, slots_of, trial_pages
from medha_actors.actors.cells import Cell
from medha_actors.actors.crew import Crew
from medha_actors.actors.layout import assign_cores
from medha_actors.actors.plans import Blueprint, Place
from medha_actors.config import MedhaConfig
from medha_actors.errors import ConfigError
from medha_actors.model_shares import shares_of
from medha_actors.model_spec import ModelSpec, split_layers

_log = logging.getLogger("medha.cluster")
_encode = msgspec.msgpack.Encoder().encode


async def build(crew: Crew, asked: MedhaConfig, spec: ModelSpec) -> Blueprint:
    """A new grid, loaded."""
    began = time.monotonic()
    config = crew.config
    shares_of(spec, crew.shape.ranks)  # refuses what cannot be shared
    await crew.hire()
    await crew.everybody(
        "locate"
    )  # all are there, and have what they take of their GPU
    places: dict[Cell, Place] = await crew.everybody("locate")
    for place in places.values():
        if place.obstacle:
            raise ConfigError(f"actors.device is {crew.device}, but {place.obstacle}")
    dtype: str = config.model_loading_config.dtype
    if dtype == "auto":
        dtype = places[Cell(0, 0)].dtype
    layers = split_layers(spec, crew.shape.stages)
    blueprint = Blueprint(
        asked=asked,
        config=config,
        spec=spec,
        device=crew.device,
        dtype=dtype,
        layers=layers,
        pages=pages_of(config, spec, layers, dtype, places),
        nodes={cell: place.node_id for cell, place in places.items()},
        cores=assign_cores(places, config),
        slots=slots_of(config, spec, layers, dtype),
        run=secrets.token_hex(8),
        gpus=tuple(sorted({place.gpu for place in places.values() if place.gpu})),
    )
    if crew.device == "cuda" and config.kv_cache.budget_bytes is None:
        blueprint, resident = await _load_measured(crew, blueprint)
    else:
        resident = await crew.call("load", _plans(blueprint))
    _log.info(
        "%d x %d x %d actors on %s, %d pages of %d tokens per group, %.0f MiB resident, "
        "loaded in %.1f s",
        *crew.shape,
        blueprint.gpus or "cpu",
        blueprint.pages,
        config.kv_cache.page_tokens,
        sum(resident.values()) / 2**20,
        time.monotonic() - began,
    )
    return blueprint


async def _load_measured(
    crew: Crew, blueprint: Blueprint
) -> tuple[Blueprint, dict[Cell, int]]:
    """With as many pages as there is room for once everything else is there. They stay as many
    whoever is replaced: the scheduler knows them."""
    pages = min(trial_pages(blueprint.config), blueprint.pages)
    trial = msgspec.structs.replace(blueprint, pages=pages, slots=0)
    resident = await crew.call("load", _plans(trial))
    await crew.everybody("rehearse")
    places: dict[Cell, Place] = await crew.everybody("locate")
    measured = measured_pages(
        blueprint.config,
        blueprint.spec,
        blueprint.layers,
        blueprint.dtype,
        places,
        pages,
    )
    blueprint = msgspec.structs.replace(blueprint, pages=measured)
    await crew.call("resize", _plans(blueprint))
    return blueprint, resident


def _plans(blueprint: Blueprint) -> dict[Cell, tuple[bytes]]:
    """What each actor of the grid is to be, packed."""
    return {cell: (_encode(blueprint.plan(cell)),) for cell in blueprint.nodes}
