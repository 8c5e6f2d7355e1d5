"""build_app: from the `args` of serve_config.yaml to a Serve application.

The ingress deployment owns the engine: its deployment actor is the controller, which makes the grid
of stage actors. This is the only place where classes become deployments and actors.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import ray
from ray import serve
from ray.serve.config import (
    AutoscalingConfig,
    AutoscalingPolicy,
    DeploymentActorConfig,
    RequestRouterConfig,
)
from ray.serve.handle import DeploymentHandle

from deployments.fleet.attaching import AttachedFleet
from deployments.fleet.grids import Grid
from deployments.keys import load_keys
from deployments.observatory import Observatory
from deployments.scheduler_actor import SchedulerActor
from deployments.server import Server
from deployments.text_sources import load_text
from medha_actors.actors.engine import RayEngine
from medha_actors.config import MedhaConfig, load
from medha_actors.model.spec import load_spec

_log = logging.getLogger("medha.app")
_CONTROLLER = "controller"
_LAST_BYTES_S = 15.0
# of what grids record of themselves, the mean; Serve wants more than its 10 s between records
_LOOK_BACK_S = 20.0
_DEFAULTS: dict[str, Any] = {
    "max_ongoing_requests": 4096,  # admission is the scheduler's business
    "health_check_period_s": 1.0,
    "max_surge_percent": 100,  # an update's new replicas are ready before the old ones stop
    "ray_actor_options": {"num_cpus": 0},
    "max_constructor_retry_count": 2,
}


class Ingress:
    """One HTTP replica: the routes, the tokenizer and the way to the controller."""

    async def __init__(  # type: ignore[misc]  # awaited by Serve
        self, args: dict[str, Any], grids: DeploymentHandle[Any] | None = None
    ) -> None:
        """`grids`: of a fleet; None: there is one grid, this deployment's own."""
        config = load(args)
        self._engine = engine = _engine(config, grids)
        text = load_text(config.model_loading_config)
        spec = load_spec(config.model_loading_config)
        await engine.start()
        replica = serve.get_replica_context().replica_id.unique_id
        observatory = None
        if config.telemetry.enabled:
            observatory = Observatory(config, engine.reports, replica)
        self._server = Server(
            config,
            engine,
            text,
            context_tokens=engine.max_model_len_tokens,
            model_vocabulary=spec.vocabulary,
            echo_request_id=False,  # Serve's proxy sets x-request-id on its answers
            observatory=observatory,
        )
        print(
            f"medha: {config.model_loading_config.model_id} is ready at {ready_url()}", flush=True
        )

    async def drain(self, timeout_s: float) -> int:
        """See Controller.drain."""
        return await self._engine.drain(timeout_s)

    def check_health(self) -> None:
        """Serve replaces a replica that raises here."""
        self._engine.check_health()

    def __serve_build_asgi_app__(self) -> Any:
        return self._server.asgi()


def _engine(config: MedhaConfig, grids: DeploymentHandle[Any] | None) -> RayEngine | AttachedFleet:
    if grids is not None:
        return AttachedFleet(grids, config)
    return RayEngine(lambda: serve.get_deployment_actor(_CONTROLLER))


def build_app(args: dict[str, Any]) -> serve.Application:
    """Check the configuration and the model (ConfigError, ModelError: the reason in one line), then
    assemble."""
    config: MedhaConfig = load(args)
    load_keys(config.api_keys)
    load_spec(config.model_loading_config)
    # What is in flight ends by then, and its last bytes are on their way: before Serve cuts it.
    grace_s = config.drain_timeout_s + _LAST_BYTES_S
    options = {
        **_DEFAULTS,
        "graceful_shutdown_timeout_s": grace_s,
        **config.deployment_config,
    }
    ingress = serve.ingress()(Ingress)
    application: serve.Application
    if config.fleet.num_grids is not None:
        deploy = serve.deployment(name="medha", **options)
        application = deploy(ingress).bind(args, _fleet(args, config, grace_s))
        return application
    controller = DeploymentActorConfig(
        name=_CONTROLLER,
        actor_class=ray.remote(SchedulerActor),
        init_kwargs={"args": args},
        actor_options={"num_cpus": 0, "max_concurrency": 10_000},
    )
    deploy = serve.deployment(name="medha", deployment_actors=[controller], **options)
    application = deploy(ingress).bind(args)
    return application


def _fleet(args: dict[str, Any], config: MedhaConfig, grace_s: float) -> serve.Application:
    """The deployment of grids: a replica each."""
    fleet = config.fleet
    router: dict[str, Any] = {
        "request_router_class": "deployments.fleet.request_router:GridRouter",
        "request_router_kwargs": msgspec.to_builtins(fleet.routing),
    }
    options: dict[str, Any] = {
        "max_ongoing_requests": 4096,
        "health_check_period_s": 1.0,
        "ray_actor_options": {"num_cpus": 0},
        "max_constructor_retry_count": 2,
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
    grids: serve.Application = serve.deployment(name="grids", **options)(Grid).bind(args)
    return grids


def ready_url() -> str:
    """Where clients reach this application."""
    client = serve.context._get_global_client() if serve.status().proxies else None
    options = None if client is None else client.http_config
    port = getattr(options, "port", 8000)
    host = getattr(options, "host", "127.0.0.1")
    return f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"
