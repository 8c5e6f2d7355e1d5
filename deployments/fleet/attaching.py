"""From Serve's handle of the grids to the engine that an ingress replica's server uses."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import ray

from deployments.fleet.engine import FleetEngine
from deployments.fleet.membership import Membership
from deployments.fleet.reports import FleetReports
from deployments.fleet.seat import edition_of, seat_of
from deployments.scheduler_actor import SERVE_NAMESPACE
from medha_actors.actors.engine import RayEngine
from medha_actors.config import MedhaConfig
from medha_actors.fleet.notices import Notice
from medha_actors.fleet.views import Ask

_PART = 0.7  # of the time in which a grid drains: then its requests are handed over


class AttachedFleet(FleetEngine):
    """All grids of a model, by way of Serve."""

    def __init__(self, handle: Any, config: MedhaConfig, name: str) -> None:
        """`handle`: of the deployment of grids (fleet/grids.py), which has this name."""
        super().__init__(
            self._ask_serve, config.cache_name, config.kv_cache.page_tokens
        )
        self._handle = handle
        edition = edition_of(config.model_loading_config)
        hand_over_s = _PART * config.drain_timeout_s
        self._membership = Membership(self, seat_of(name), edition, hand_over_s, _open)
        self.reports = FleetReports(self._reports)
        self.max_model_len_tokens = 0

    async def start(self) -> None:
        """Wait for the first grid that serves."""
        # Serve makes the router, which says who is there, with the first request.
        async with self._handle.choose_replica(_reserve=False):
            pass
        grid = await self._membership.start()
        assert isinstance(grid, RayEngine)
        self.max_model_len_tokens = grid.max_model_len_tokens

    def check_health(self) -> None:
        """Serve replaces an ingress replica that raises here."""
        for grid in self.grids.values():
            assert isinstance(grid, RayEngine)
            grid.check_health()

    def _reports(self) -> dict[str, Any]:
        return {
            name: grid.reports
            for name, grid in self.grids.items()
            if isinstance(grid, RayEngine)
        }

    async def _ask_serve(self, ask: Ask, left_out: Collection[str]) -> str | None:
        """Serve's request router (request_router.GridRouter) chooses, in this process; no slot is
        reserved, for admission is the scheduler's business."""
        if not self.grids.keys() - left_out:
            return None
        choosing = self._handle.choose_replica(ask, tuple(left_out), _reserve=False)
        async with choosing as selection:
            return str(selection.replica_id)


def _open(controller: str, hear: Callable[[Notice], None]) -> RayEngine:
    return RayEngine(
        lambda: ray.get_actor(controller, namespace=SERVE_NAMESPACE), hear=hear
    )
