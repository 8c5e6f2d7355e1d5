"""Rooms: what a grid needs of the cluster. A room is a placement group, a bundle for each team."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version

import ray
from ray.util.placement_group import PlacementGroup, get_current_placement_group

from medha_actors.actors.layout import chosen_device, fitted
from medha_actors.actors.plans import shape_of
from medha_actors.config import MedhaConfig
from medha_actors.errors import ConfigError

Bundle = dict[str, float]


def cluster_gpus() -> int:
    """Of the whole cluster, as far as it is there."""
    return int(ray.cluster_resources().get("GPU", 0))


def device_for(config: MedhaConfig, gpus: int) -> str:
    """ "cuda" or "cpu", in a cluster with so many GPUs."""
    return chosen_device(config.actors.device, gpus, version("torch"))


def room_for(config: MedhaConfig) -> list[Bundle]:
    """The bundles that a grid of this configuration will want in this cluster; without one, as in
    a check of a configuration, on CPUs."""
    gpus = cluster_gpus() if ray.is_initialized() else 0
    device = device_for(config, gpus)
    return bundles_of(fitted(config, gpus) if device == "cuda" else config, device)


def bundles_of(config: MedhaConfig, device: str) -> list[Bundle]:
    """One for each team: its ranks are on one node."""
    stages, groups, ranks = shape_of(config)
    bundle: Bundle = {"CPU": config.actors.num_cpus * ranks}
    if device == "cuda":
        bundle["GPU"] = gpus_of_actor(config) * ranks
    if config.accelerator_type:
        bundle[f"accelerator_type:{config.accelerator_type}"] = 0.001
    return [bundle] * (stages * groups)


def gpus_of_actor(config: MedhaConfig) -> float:
    """Of each actor on CUDA."""
    part = config.actors.num_gpus
    return 1.0 if part is None else part


def strategy_of(config: MedhaConfig) -> str:
    """How the bundles are spread over nodes."""
    return str(config.placement_group_config.get("strategy", "PACK"))


def check_fits(config: MedhaConfig, bundles: Sequence[Bundle]) -> None:
    """Raises ConfigError where the whole cluster is too small."""
    total: Mapping[str, float] = ray.cluster_resources()
    stages, groups, ranks = shape_of(config)
    for name, amount in bundles[0].items():
        wanted = amount * len(bundles)
        if wanted > total.get(name, 0.0) + 1e-6:
            asked = f"{stages} stages x {groups} groups"
            if ranks > 1:
                asked += f" x {ranks} tensor ranks"
            raise ConfigError(
                f"parallel: {asked} need {wanted:g} {name}, the cluster has "
                f"{total.get(name, 0.0):g}"
            )


def given_room() -> PlacementGroup | None:
    """The one in which this process has been put, with whatever it makes."""
    if not ray.is_initialized():
        return None
    room: PlacementGroup | None = get_current_placement_group()
    return room
