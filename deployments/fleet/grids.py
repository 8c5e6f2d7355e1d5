"""A grid as a replica of a Serve deployment: Serve places, counts, watches, updates and scales it.

The replica itself does next to nothing: it makes the grid's controller, an actor of its own that
the ingress replicas talk to directly, and tells Serve of it. All of a grid is in the placement
group that Serve has made for its replica. A controller that dies is made anew
under its name and finds its stage actors at work. One whose replica dies ends too: ranks, which
Serve hands on and changes, are no names for what has to be the only one of its name.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from deployments.fleet.autoscaling import stats_of
from deployments.fleet.request_router import CONTROLLER, EDITION
from deployments.fleet.seat import edition_of
from deployments.scheduler_actor import GRID_PREFIX, SERVE_NAMESPACE, SchedulerActor
from medha_actors.config import load
from medha_actors.fleet.notices import Notice

_ANSWER_S: Final = 10.0  # a controller takes no longer to answer


class Grid:
    """One grid."""

    async def __init__(self, args: dict[str, Any]) -> None:  # type: ignore[misc]  # awaited by Serve
        self._args = args
        config = load(args)
        self._drain_s = config.drain_timeout_s
        self._edition = edition_of(config.model_loading_config)
        context = serve.get_replica_context()
        self._name = f"{GRID_PREFIX}{context.app_name}::{context.replica_id.unique_id}"
        self._controller = self._find_or_make()
        await self._controller.ready.remote()

    def _find_or_make(self) -> Any:
        room = get_current_placement_group()
        assert room is not None, "Serve makes one for each replica (deploying.py)"
        # Beside the replica, so that no node takes a part of this grid and a part of another.
        here = PlacementGroupSchedulingStrategy(room, placement_group_bundle_index=0)
        actor: Any = ray.remote(SchedulerActor)
        return actor.options(
            name=self._name,
            namespace=SERVE_NAMESPACE,
            get_if_exists=True,
            num_cpus=0,
            max_concurrency=10_000,
            scheduling_strategy=here,
        ).remote(args=self._args)

    def record_replica_metadata(self) -> dict[str, str]:
        """For the ingress replicas' routers."""
        return {CONTROLLER: self._name, EDITION: self._edition}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """For the autoscaling policy."""
        packed = await self._controller.notice.remote()
        return stats_of(msgspec.msgpack.decode(packed, type=Notice | None))

    async def check_health(self) -> None:
        """A controller that has died is made anew; Serve replaces a replica that raises here."""
        try:
            async with asyncio.timeout(_ANSWER_S):
                await self._controller.notice.remote()
        except RayActorError:
            self._controller = self._find_or_make()
            await self._controller.ready.remote()

    async def drain(self, timeout_s: float) -> int:
        """See Controller.drain."""
        unfinished: int = await self._controller.drain.remote(timeout_s)
        return unfinished

    async def __del__(self) -> None:
        """Serve lets this replica go: what is in flight finishes first."""
        await self._controller.drain.remote(self._drain_s)
        await self._controller.stop.remote()
        ray.kill(self._controller)
