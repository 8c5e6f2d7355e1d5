"""Grids, models, configurations and requests for tests of the scheduler."""

from zlib import crc32

import msgspec

from medha_actors.config import (
    KvCacheConfig,
    MedhaConfig,
    ObjectivesConfig,
    SchedulerConfig,
)
from medha_actors.core.kv_plan import Grid
from medha_actors.core.predictor import ExecutionModel, Profile
from medha_actors.grid_config import ParallelConfig
from medha_actors.messages import (
    Objectives,
    Request,
    SamplingParams,
    pack_tokens,
)

PAGE = 4


def grid_of(stages=1, groups=1, pages=64, cutoff=None, page=PAGE, length=4096, slots=0):
    return Grid(
        stages=stages,
        groups=groups,
        pages_per_group=pages,
        page_tokens=page,
        max_tokens_per_kvp_group=cutoff,
        max_model_len_tokens=length,
        slots_per_group=slots,
    )


def model_of(stages=1, page_s=0.0, lends=False, of_decodes=0.5):
    """`lends`: batches that have the grid to themselves are quicker, or take `of_decodes` of their
    time where they decode for a few."""
    model = ExecutionModel.analytic(
        stages, token_s=1e-3, step_s=2e-3, pair_s=1e-6, kv_s=1e-6, page_s=page_s
    )
    if not lends:
        return model
    parts = {"alone_decode": ((1, of_decodes), (4, 0.7)), "alone_prefill": ((8, 0.6),)}
    return ExecutionModel(
        Profile(
            tuple(
                [
                    msgspec.structs.replace(stage, **parts)
                    for stage in model.profile.stages
                ]
            )
        )
    )


def config_of(
    policy="lars", tpot_s=0.2, objectives=None, prefix_cache=True, **scheduler
):
    return MedhaConfig(
        parallel=ParallelConfig(),
        scheduler=SchedulerConfig(policy=policy, **scheduler),
        objectives=ObjectivesConfig(tpot_s=tpot_s, **(objectives or {})),
        kv_cache=KvCacheConfig(page_tokens=PAGE, prefix_cache=prefix_cache),
    )


def request_of(
    name,
    prompt,
    output=4,
    at=0.0,
    ttft_s=None,
    timeout_s=None,
    priority=0,
    begins=(),
    cache_salt="",
    cache=True,
    **sampling,
):
    """Prompt tokens differ between requests, so a mixed-up cache is seen; but for the first ones,
    if given (`begins`)."""
    own = crc32(name.encode()) % 2**30
    ids = list(range(own, own + prompt))
    ids[: len(begins)] = begins[:prompt]
    return Request(
        id=name,
        prompt_token_ids=pack_tokens(ids),
        sampling=SamplingParams(max_tokens=output, **sampling),
        objectives=Objectives(ttft_s=ttft_s, timeout_s=timeout_s),
        arrived_at=at,
        priority=priority,
        cache_salt=cache_salt,
        cache=cache,
    )
