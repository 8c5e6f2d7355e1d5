"""The deployment of a model's grids, each of which is a replica."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from deployments.fleet.grids import Grid
from deployments.fleet.versions import keep_version, version_of
from medha_actors.actors.rooms import check_fits, room_for, strategy_of
from medha_actors.config import MedhaConfig

# of what grids record of themselves, the mean; Serve wants more than its 10 s between records
_LOOK_BACK_S: Final = 20.0


def grids_of(
    args: dict[str, Any], config: MedhaConfig, name: str, grace_s: float
) -> serve.Application:
    """`name`: of the deployment, and of its seat in ingress replicas; `grace_s`: until Serve cuts
    what is in flight in a grid that goes."""
    fleet = config.fleet
    router: dict[str, Any] = {
        "request_router_class": "deployments.fleet.request_router:GridRouter",
        "request_router_kwargs": {"fleet": name, **msgspec.to_builtins(fleet.routing)},
    }
    room = room_for(config)
    if ray.is_initialized():
        check_fits(config, room)
    options: dict[str, Any] = {
        # of which each replica has its own, and with it all of its grid: what takes one grid's
        # node takes nothing of another's
        "placement_group_bundles": room,
        "placement_group_strategy": strategy_of(config),
        "max_ongoing_requests": 4096,
        "health_check_period_s": 1.0,
        "ray_actor_options": {"num_cpus": 0},
        "max_constructor_retry_count": 2,
        "max_surge_percent": 100 if fleet.surge else 0,
        "graceful_shutdown_timeout_s": grace_s,
        "request_router_config": RequestRouterConfig(**router),
    }
    if fleet.scaling is None:
        options["num_replicas"] = fleet.num_grids
    else:
        options["autoscaling_config"] = AutoscalingConfig(
            min_replicas=fleet.scaling.min_grids,
            initial_replicas=fleet.num_grids,
            max_replicas=fleet.scaling.max_grids,
            # the policy waits by itself
            upscale_delay_s=0.0,
            downscale_delay_s=0.0,
            look_back_period_s=_LOOK_BACK_S,
            policy=AutoscalingPolicy(
                policy_function="deployments.fleet.autoscaling:GridScaling",
                policy_kwargs=msgspec.to_builtins(fleet.scaling),
            ),
        )
    deployment = serve.deployment(name=name, **options)(Grid)
    keep_version(deployment, version_of(args, _runtime_env()))
    grids: serve.Application = deployment.bind(args)
    return grids


def _runtime_env() -> dict[str, Any]:
    """Of the application, in the task in which Serve builds it."""
    return dict(ray.get_runtime_context().runtime_env) if ray.is_initialized() else {}
