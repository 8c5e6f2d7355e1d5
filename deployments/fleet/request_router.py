"""Serve's request router for grids: a thin door to medha_actors.fleet.routing.

Serve loads it in every process with a handle to the grids (RequestRouterConfig); with
`DeploymentHandle.choose_replica` an ingress replica asks it without a call to anybody. Serve sends
the class there with all that its module holds, so the process's own seat is not one of its globals.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from deployments.fleet import seat
from medha_actors.fleet.views import Ask
from medha_actors.fleet_config import RoutingConfig

# Of a replica's metadata: the name of its grid's controller, and which model that has.
CONTROLLER = "controller"
EDITION = "edition"


class GridRouter(RequestRouter):
    """Requests for it are made with an Ask, and the ids of replicas that are not to be chosen."""

    def initialize_state(self, **settings: Any) -> None:
        """`settings`: the name of the `fleet`, and the section fleet.routing."""
        self._seat = seat.seat_of(settings.pop("fleet"))
        self._seat.configure(msgspec.convert(settings, RoutingConfig))

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Those that have not said yet where their controller is come later."""
        super().update_replicas(replicas)
        self._seat.members(members_of(replicas))

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The grid for the request first; the others, for whoever has nothing to ask with."""
        return ranked(self._seat, candidate_replicas, pending_request)


def members_of(replicas: Collection[RunningReplica]) -> dict[str, seat.Member]:
    """By replica id, those that have said where their controller is."""
    members = {}
    for replica in replicas:
        said = replica.replica_metadata
        if CONTROLLER in said:
            member = seat.Member(said[CONTROLLER], said.get(EDITION, ""))
            members[replica.replica_id.unique_id] = member
    return members


def ranked(
    place: seat.Seat, candidates: list[RunningReplica], pending: PendingRequest | None
) -> list[list[RunningReplica]]:
    """Serve's form of a choice: lists of replicas, the best first."""
    by_name = {replica.replica_id.unique_id: replica for replica in candidates}
    arguments = () if pending is None else pending.args
    if not arguments or not isinstance(arguments[0], Ask):
        return [candidates]
    left_out: Collection[str] = arguments[1] if len(arguments) > 1 else ()
    names = [name for name in by_name if name not in left_out and place.takes(name)]
    choice = place.choose(arguments[0], names)
    if choice is None:  # nobody has been heard yet, or nobody is left
        return [[by_name[name] for name in names] or candidates]
    return [[by_name[choice.grid]]]
