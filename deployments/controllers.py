"""Finding our controllers among the actors of a Ray cluster.

A controller is Serve's deployment actor, whose name holds application, deployment and the version of
its arguments. So the old and the new one of an update live side by side under different names.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.serve._private.constants import SERVE_DEPLOYMENT_ACTOR_PREFIX, SERVE_NAMESPACE

CONTROLLER = "controller"


def controller_names(application: str | None = None) -> list[str]:
    """Names of the living controllers of an application (None: of all of them)."""
    start = SERVE_DEPLOYMENT_ACTOR_PREFIX + (f"{application}::" if application is not None else "")
    return [
        actor["name"]
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["namespace"] == SERVE_NAMESPACE
        and actor["name"].startswith(start)
        and actor["name"].endswith(f"::{CONTROLLER}")
    ]


def controller_handle(name: str) -> Any:
    """The controller of this name; raises ValueError when it is gone."""
    return ray.get_actor(name, namespace=SERVE_NAMESPACE)
