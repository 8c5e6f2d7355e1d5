"""From a workload to what a simulated fleet did with it."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.records import PlannedRequest
from loadgen.twin.clients import Clients, name_of
from loadgen.twin.deployment import Deployment
from loadgen.twin.fleet.simulation import FleetOptions, FleetSimulation, Moment
from loadgen.twin.replay import Played, no_collection, record_of


class FleetPlayed(Played, kw_only=True):
    """Beside what one grid did: the seconds of all grids, and how many there were when."""

    grid_seconds: float
    moments: list[Moment]


def play_fleet(
    deployment: Deployment,
    requests: Sequence[PlannedRequest],
    options: FleetOptions,
    *,
    concurrency: int | None = None,
) -> FleetPlayed:
    """Run a workload on `deployment.replicas` grids behind routers."""
    fleet = FleetSimulation(deployment, Clients(requests, concurrency), options)
    with no_collection():
        fleet.run()
    logs = dict(fleet.refused)
    results = [grid.simulation.result() for grid in fleet.grids]
    for result in results:
        logs |= result.requests
    records = [record_of(planned, logs.get(name_of(planned))) for planned in requests]
    records.sort(key=lambda record: record.index)
    duration_s = max((record.ended_at or 0.0 for record in records), default=0.0)
    busiest = max(results, key=lambda result: max(result.busy_s))
    schedulers = [grid.simulation.scheduler for grid in fleet.grids]
    return FleetPlayed(
        records=records,
        duration_s=duration_s,
        batches=sum([result.batches for result in results]),
        busy=[seconds / max(duration_s, 1e-12) for seconds in busiest.busy_s],
        preemptions=sum(
            [scheduler.stats().preemptions_total for scheduler in schedulers]
        ),
        stamps=[],
        grid_seconds=fleet.grid_seconds,
        moments=fleet.moments,
    )
