"""How many pages of KV cache each group gets, and whether what was asked for can be held by them at
all."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from medha_actors.actors.cells import Cell
from medha_actors.actors.plans import Place
from medha_actors.config import MedhaConfig
from medha_actors.errors import ConfigError
from medha_actors.model_shares import specs_of
from medha_actors.model_spec import DTYPE_BYTES, ModelSpec, kv_bytes_per_token

_CPU_KV_SHARE = 0.25  # of the free host memory, for all actors of a node together
# of the actor's share of the GPU, less its weights, as long as none is loaded
_CUDA_KV_SHARE = 0.85
# of what is free when everything but the cache is there; the rest is for what later steps take more
_CUDA_FREE_SHARE = 0.9


def pages_of(
    config: MedhaConfig,
    spec: ModelSpec,
    layers: list[tuple[int, int]],
    dtype: str,
    places: Mapping[Cell, Place],
) -> int:
    """Pages per group: what the tightest actor can hold. Raises ConfigError if the configuration
    needs more."""
    page_tokens = config.kv_cache.page_tokens
    pages = []
    ranks = specs_of(spec, config.parallel.tp)

    def bytes_of(cell: Cell) -> int:
        return kv_bytes_per_token(ranks[cell.rank], layers[cell.stage], dtype)

    for cell, place in places.items():
        budget: float | None = config.kv_cache.budget_bytes
        if budget is None:
            budget = _free_share(
                config, ranks[cell.rank], layers[cell.stage], dtype, place, places
            )
        pages.append(int(budget // (page_tokens * bytes_of(cell))))
    refuse_impossible(config, min(pages), max(map(bytes_of, places)))
    return min(pages)


def trial_pages(config: MedhaConfig) -> int:
    """Enough for the largest steps, which show how much memory is left."""
    limits = config.scheduler
    longest = -(-limits.max_batch_tokens // config.kv_cache.page_tokens)
    return max(longest, limits.max_running_requests)


def measured_pages(
    config: MedhaConfig,
    spec: ModelSpec,
    layers: list[tuple[int, int]],
    dtype: str,
    places: Mapping[Cell, Place],
    trial: int,
) -> int:
    """Pages per group, from what is free on every GPU when all actors have loaded, hold `trial`
    pages each, and have run their largest steps. Raises ConfigError if the configuration needs
    more."""
    ranks = specs_of(spec, config.parallel.tp)
    pages = []
    largest = 0
    for cell, place in places.items():
        token_bytes = kv_bytes_per_token(ranks[cell.rank], layers[cell.stage], dtype)
        page_bytes = config.kv_cache.page_tokens * token_bytes
        budget = (
            place.free_bytes * _CUDA_FREE_SHARE * _part_of_gpu(config, place, places)
        )
        pages.append(trial + int(budget // page_bytes))
        largest = max(largest, token_bytes)
    refuse_impossible(config, min(pages), largest)
    return min(pages)


def slots_of(
    config: MedhaConfig, spec: ModelSpec, layers: list[tuple[int, int]], dtype: str
) -> int:
    """Pages per group in the second tier: what `host_bytes` of the actor with the most of a page
    hold."""
    ranks = specs_of(spec, config.parallel.tp)
    actors = itertools.product(ranks, layers)
    token_bytes = max([kv_bytes_per_token(rank, held, dtype) for rank, held in actors])
    return config.kv_cache.host_bytes // (config.kv_cache.page_tokens * token_bytes)


def refuse_impossible(config: MedhaConfig, pages: int, token_bytes: int) -> None:
    """Raises ConfigError, with the numbers, if what was asked for explicitly does not fit `pages`
    in each group.

    `token_bytes`: of the stage with the most layers. A cutoff that is derived (see KvPlan) always
    fits.
    """
    groups = config.parallel.kvp
    cutoff = config.parallel.max_tokens_per_kvp_group
    longest = config.model_loading_config.max_model_len_tokens
    page_tokens = config.kv_cache.page_tokens
    room = pages * page_tokens

    def needs(tokens: int) -> str:
        page_bytes = page_tokens * token_bytes
        return f"it takes kv_cache.budget_bytes of {-(-tokens // page_tokens) * page_bytes} or more"

    holds = (
        f"the cache of a group holds {room} tokens ({pages} pages of {page_tokens} tokens, "
        f"{token_bytes} bytes a token in the largest stage)"
    )
    if pages < 1:
        raise ConfigError(f"kv_cache: {holds}; {needs(1)}")
    if groups > 1 and cutoff is not None and cutoff > room:
        raise ConfigError(
            f"parallel.max_tokens_per_kvp_group is {cutoff}, but {holds}; {needs(cutoff)}"
        )
    most = (groups - 1) * (cutoff or room) + room if groups > 1 else room
    if longest is not None and longest > most:
        last = (
            longest - (groups - 1) * cutoff
            if groups > 1 and cutoff
            else -(-longest // groups)
        )
        raise ConfigError(
            f"model_loading_config.max_model_len_tokens is {longest}, but {holds} and a request at "
            f"most {most} of them in {groups} group(s); {needs(last)}, or a larger parallel.kvp"
        )


def _free_share(
    config: MedhaConfig,
    spec: ModelSpec,
    layers: tuple[int, int],
    dtype: str,
    place: Place,
    places: Mapping[Cell, Place],
) -> float:
    """The default budget in bytes of one actor, which holds these layers of `spec`, the model as
    its rank sees it: a share of what is free where it runs. Raises ConfigError if a GPU cannot hold
    the layers."""
    if place.gpu is None:
        beside = sum(other.node_id == place.node_id for other in places.values())
        return place.free_bytes * _CPU_KV_SHARE / beside
    share = place.free_bytes * _part_of_gpu(config, place, places)
    # embedding and head, where the stage has them
    tables = 2 * spec.vocabulary * spec.hidden
    count = layers[1] - layers[0]
    weights = (count * spec.layer_parameters + tables) * DTYPE_BYTES[dtype]
    if weights >= share:
        experts = f", each with {spec.experts.count} experts" if spec.experts else ""
        parallel = config.parallel
        ranks = f" on one of {parallel.tp} tensor ranks" if parallel.tp > 1 else ""
        raise ConfigError(
            f"parallel.spp is {parallel.spp}: the {count} layers of a stage{experts} take "
            f"{weights} bytes in {dtype}{ranks}, but of its GPU {int(share)} are free; use more "
            "stages"
        )
    return (share - weights) * _CUDA_KV_SHARE


def _part_of_gpu(
    config: MedhaConfig, place: Place, places: Mapping[Cell, Place]
) -> float:
    """Of what is free on its GPU, for one actor: no more than it asked for, and the same for all
    that are on this GPU."""
    sharing = sum([other.on == place.on for other in places.values()])
    part = config.actors.num_gpus
    return min(1 / sharing, 1.0 if part is None else part)
