"""build_app: from the `args` of serve_config.yaml to a Serve application.

The ingress deployment owns the engine: its deployment actor is the controller, which makes the grid
of stage actors. This is the only place where classes become deployments and actors.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import ray
from ray import serve
from ray.serve.config import DeploymentActorConfig
from ray.serve.handle import DeploymentHandle

from deployments.catalogue import Entry, catalogue_of, grids_name
from deployments.fleet.attaching import AttachedFleet
from deployments.fleet.deploying import grids_of
from deployments.keys import load_keys
from deployments.models import Models
from deployments.observatory import Observatory
from deployments.scheduler_actor import SchedulerActor
from deployments.server import Server
from deployments.text_sources import load_text
from medha_actors.actors.engine import RayEngine
from medha_actors.config import MedhaConfig
from medha_actors.model.spec import load_spec

_log = logging.getLogger("medha.app")
_CONTROLLER = "controller"
_GRIDS = "grids"
_LAST_BYTES_S = 15.0
_DEFAULTS: dict[str, Any] = {
    "max_ongoing_requests": 4096,  # admission is the scheduler's business
    "health_check_period_s": 1.0,
    "max_surge_percent": 100,  # an update's new replicas are ready before the old ones stop
    "ray_actor_options": {"num_cpus": 0},
    "max_constructor_retry_count": 2,
}


class Ingress:
    """One HTTP replica: the routes, the tokenizers and the ways to the controllers."""

    async def __init__(  # type: ignore[misc]  # awaited by Serve
        self, args: dict[str, Any], *grids: DeploymentHandle[Any]
    ) -> None:
        """`grids`: of the fleet of each model; none: there is one grid, this deployment's own."""
        catalogue = catalogue_of(args)
        self._engines = [
            _engine(entry, catalogue.several, grids[number] if grids else None)
            for number, entry in enumerate(catalogue.entries)
        ]
        await asyncio.gather(*[engine.start() for engine in self._engines])
        servers: dict[str, Server] = {}
        for entry, engine in zip(catalogue.entries, self._engines, strict=True):
            servers[entry.model_id] = _server(entry.config, engine)
        self._app = (
            Models(servers) if catalogue.several else servers.popitem()[1].asgi()
        )
        names = " and ".join([entry.model_id for entry in catalogue.entries])
        print(f"medha: {names} is ready at {ready_url()}", flush=True)

    async def drain(self, timeout_s: float) -> int:
        """See Controller.drain."""
        return sum(
            await asyncio.gather(*[engine.drain(timeout_s) for engine in self._engines])
        )

    def check_health(self) -> None:
        """Serve replaces a replica that raises here."""
        for engine in self._engines:
            engine.check_health()

    def __serve_build_asgi_app__(self) -> Any:
        return self._app


def _engine(
    entry: Entry, several: bool, grids: DeploymentHandle[Any] | None
) -> RayEngine | AttachedFleet:
    if grids is None:
        return RayEngine(lambda: serve.get_deployment_actor(_CONTROLLER))
    return AttachedFleet(grids, entry.config, grids_name(entry) if several else _GRIDS)


def _server(config: MedhaConfig, engine: RayEngine | AttachedFleet) -> Server:
    """For an engine that has started."""
    observatory = None
    if config.telemetry.enabled:
        replica = serve.get_replica_context().replica_id.unique_id
        observatory = Observatory(config, engine.reports, replica)
    return Server(
        config,
        engine,
        load_text(config.model_loading_config),
        context_tokens=engine.max_model_len_tokens,
        model_vocabulary=load_spec(config.model_loading_config).vocabulary,
        echo_request_id=False,  # Serve's proxy sets x-request-id on its answers
        observatory=observatory,
    )


def build_app(args: dict[str, Any]) -> serve.Application:
    """Check the configuration and the models (ConfigError, ModelError: the reason in one line),
    then assemble."""
    catalogue = catalogue_of(args)
    for _, config in catalogue.entries:
        load_keys(config.api_keys)
        load_spec(config.model_loading_config)
    # What is in flight ends by then, and its last bytes are on their way: before Serve cuts it.
    grace_s = catalogue.drain_timeout_s + _LAST_BYTES_S
    options = {
        **_DEFAULTS,
        "graceful_shutdown_timeout_s": grace_s,
        **catalogue.deployment_config,
    }
    fleets = []
    for entry in catalogue.entries:
        if entry.config.fleet.num_grids is not None:
            name = grids_name(entry) if catalogue.several else _GRIDS
            fleets.append(grids_of(entry.args, entry.config, name, grace_s))
    if not fleets:
        controller = DeploymentActorConfig(
            name=_CONTROLLER,
            actor_class=ray.remote(SchedulerActor),
            init_kwargs={"args": args},
            actor_options={"num_cpus": 0, "max_concurrency": 10_000},
        )
        options["deployment_actors"] = [controller]
    deploy = serve.deployment(name="medha", **options)
    application: serve.Application = deploy(serve.ingress()(Ingress)).bind(
        args, *fleets
    )
    return application


def ready_url() -> str:
    """Where clients reach this application."""
    client = serve.context._get_global_client() if serve.status().proxies else None
    options = None if client is None else client.http_config
    port = getattr(options, "port", 8000)
    host = getattr(options, "host", "127.0.0.1")
    return f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"
