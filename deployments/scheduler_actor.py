"""The controller as Serve's deployment actor. Serve pickles the class with its module, so it has
one to itself; and it is made anew within seconds, so it imports no more than it needs."""

from __future__ import annotations

import contextlib
from typing import Any

import ray

from medha_actors.actors.controller import Controller
from medha_actors.actors.orphans import Owner
from medha_actors.config import load

SERVE_NAMESPACE = "serve"  # where Serve names its deployment actors

GRID_PREFIX = "medha-grid::"  # of the controllers of a fleet


class SchedulerActor(Controller):
    """The stage actors outlive it under its name."""

    def __init__(self, args: dict[str, Any]) -> None:
        name = ray.get_runtime_context().get_actor_name()
        assert name is not None, "Serve names its deployment actors"
        patience_s = load(args).actors.orphan_timeout_s
        super().__init__(args, Owner(name, SERVE_NAMESPACE, patience_s))
        self._name = name

    def predecessors(self) -> list[Any]:
        """Controllers of other versions of this deployment: `serve deploy` replaces them. Serve's
        names for them are PREFIX::application::deployment::version::name."""
        if self._name.startswith(GRID_PREFIX):
            return []  # Serve lets the replicas of before drain, and then starts new ones
        deployment, _, suffix = self._name.rsplit("::", 2)
        handles = []
        for actor in ray.util.list_named_actors(all_namespaces=True):
            name = actor["name"]
            if actor["namespace"] != SERVE_NAMESPACE or name == self._name:
                continue
            if name.startswith(f"{deployment}::") and name.endswith(f"::{suffix}"):
                with contextlib.suppress(ValueError):  # it has ended meanwhile
                    handles.append(ray.get_actor(name, namespace=SERVE_NAMESPACE))
        return handles
