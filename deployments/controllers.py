"""Finding our controllers among the actors of a Ray cluster.

A controller is Serve's deployment actor, whose name holds application, deployment and the version of
its arguments. So the old and the new one of an update live side by side under different names.
"""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray.serve._private.constants import SERVE_DEPLOYMENT_ACTOR_PREFIX, SERVE_NAMESPACE

CONTROLLER = "controller"


def other_controllers(application: str, own_name: str | None) -> list[Any]:
    """Handles of the living controllers of an application, without the one of this name."""
    prefix = f"{SERVE_DEPLOYMENT_ACTOR_PREFIX}{application}::"
    handles = []
    for actor in ray.util.list_named_actors(all_namespaces=True):
        name = actor["name"]
        if actor["namespace"] != SERVE_NAMESPACE or name == own_name:
            continue
        if name.startswith(prefix) and name.endswith(f"::{CONTROLLER}"):
            with contextlib.suppress(ValueError):  # it has ended meanwhile
                handles.append(ray.get_actor(name, namespace=SERVE_NAMESPACE))
    return handles
