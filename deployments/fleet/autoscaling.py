"""Serve's autoscaling policy for grids: a thin door to medha_actors.fleet.scaling.

Serve makes one object of the class and calls it every few seconds with what the replicas have
recorded (grids.Grid.record_autoscaling_stats).
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
from ray.serve.config import AutoscalingContext

from medha_actors.fleet.notices import Notice
from medha_actors.fleet.scaling import GridLoad, Scaling
from medha_actors.fleet_config import ScalingConfig


def stats_of(notice: Notice | None) -> dict[str, float]:
    """What a replica records of its grid; zeros while that starts."""
    if notice is None:
        return {"load": 0.0, "queued": 0.0, "late": 0.0, "late_s": 0.0}
    return {
        "load": notice.load,
        "queued": float(notice.queued),
        "late": float(notice.late),
        "late_s": notice.late_s,
    }


class GridScaling:
    """`settings`: the section fleet.scaling."""

    def __init__(self, **settings: Any) -> None:
        self._scaling = Scaling(msgspec.convert(settings, ScalingConfig))

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas, and no state for Serve to keep."""
        now = time.time() if context.current_time is None else context.current_time
        recorded = context.aggregated_metrics or {}
        loads = []
        for replica in context.running_replicas:
            values = {
                name: recorded.get(name, {}).get(replica, 0.0)
                for name in stats_of(None)
            }
            loads.append(
                GridLoad(
                    load=values["load"],
                    queued=round(values["queued"]),
                    late=round(values["late"]),
                    late_s=values["late_s"],
                )
            )
        return self._scaling.decide(loads, context.target_num_replicas, now), {}
