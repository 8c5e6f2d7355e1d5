"""Layout: a grid fitted to the GPUs and the cores that are there."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import msgspec

from medha_actors.actors.cells import Cell
from medha_actors.actors.plans import Place, shape_of
from medha_actors.config import MedhaConfig
from medha_actors.errors import ConfigError

_log = logging.getLogger("medha.cluster")
_PARTS = 10_000  # of a GPU, as Ray counts them
MOST_THREADS = 16  # of an actor, if no number is asked for


def chosen_device(asked: str, gpus: int, torch_version: str) -> str:
    """ "cuda" or "cpu", for a cluster with so many GPUs. A build of torch for CPUs alone cannot use
    them: "auto" then is the CPU, with a line in the log; "cuda" raises ConfigError."""
    if asked == "cpu" or not gpus:
        return "cuda" if asked == "cuda" else "cpu"
    if not torch_version.endswith("+cpu"):
        return "cuda"
    cure = (
        f"there are {gpus} GPU(s), but torch {torch_version} is a build for CPUs alone: "
        "pip install torch --index-url https://download.pytorch.org/whl/cu130"
    )
    if asked == "cuda":
        raise ConfigError(f"actors.device is cuda; {cure}")
    _log.warning("on the CPU: %s", cure)
    return "cpu"


def fitted(config: MedhaConfig, gpus: int) -> MedhaConfig:
    """The configuration of a grid on this many GPUs, each actor's part of one filled in.

    With `device: auto` a grid of more actors than GPUs has fewer stages: stages that take turns on
    a GPU gain nothing. If that is not enough, or `device` is `cuda`, actors share GPUs in equal
    parts. What `num_gpus` says is done as it says.
    """
    actors = config.actors
    if actors.num_gpus is not None or gpus < 1:
        return config
    stages, groups, ranks = shape_of(config)
    if actors.device == "auto":
        stages = max(1, min(stages, gpus // (groups * ranks)))
    parallel = msgspec.structs.replace(config.parallel, spp=stages)
    actors = msgspec.structs.replace(
        actors, num_gpus=_part(stages * groups, ranks, gpus)
    )
    return msgspec.structs.replace(config, parallel=parallel, actors=actors)


def _part(teams: int, ranks: int, gpus: int) -> float:
    """Of a GPU, for each rank of so many teams. A team is whole GPUs, or a part of one: Ray puts
    nothing else into a bundle."""
    if teams * ranks <= gpus:
        return 1.0
    on_one = -(-teams // gpus) * ranks  # actors on one GPU
    if teams < gpus:
        on_one = -(-ranks // (gpus // teams))
    return _PARTS // on_one / _PARTS


def described(asked: MedhaConfig, config: MedhaConfig, gpus: int) -> str:
    """What was made of the layout that was asked for; empty: nothing else."""
    changes = []
    if config.parallel.spp != asked.parallel.spp:
        changes.append(f"{config.parallel.spp} stages instead of {asked.parallel.spp}")
    part = config.actors.num_gpus
    if asked.actors.num_gpus is None and part is not None and part < 1:
        changes.append(f"{part:g} of a GPU for each actor")
    return f"{gpus} GPU(s): {', '.join(changes)}" if changes else ""


def turns(holds: Sequence[set[tuple[str, str]]]) -> list[list[int]]:
    """Numbers of stages, in as few turns as come of taking each as early as nobody else in its turn
    holds what it holds."""
    made: list[list[int]] = []
    for stage, own in enumerate(holds):
        for turn in made:
            if not any(own & holds[other] for other in turn):
                turn.append(stage)
                break
        else:
            made.append([stage])
    return made


def assign_cores(
    places: dict[Cell, Place], config: MedhaConfig
) -> dict[Cell, tuple[int, ...]]:
    """Distinct cores for the CPU actors of each node, or none where there are fewer cores than
    threads. Where no number of threads is asked for, a node's actors share its cores."""
    actors = Counter([place.node_id for place in places.values()])
    taken: dict[str, int] = {}
    cores: dict[Cell, tuple[int, ...]] = {}
    for cell, place in places.items():
        pinned = config.actors.pin and place.gpu is None
        each = len(place.cores) // actors[place.node_id]
        threads = config.actors.threads or min(MOST_THREADS, each)
        if not pinned or not 0 < threads <= each:
            cores[cell] = ()
            continue
        start = taken.get(place.node_id, 0)
        taken[place.node_id] = start + threads
        cores[cell] = place.cores[start : start + threads]
    return cores
