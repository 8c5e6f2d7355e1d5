"""The controller as Serve's deployment actor. Serve pickles the class with its module, so it has
one to itself; and it is made anew within seconds, so it imports no more than it needs."""

from __future__ import annotations

from typing import Any

import ray

from medha_actors.actors.controller import Controller
from medha_actors.actors.orphans import Owner
from medha_actors.config import load

_SERVE_NAMESPACE = "serve"  # where Serve names its deployment actors


class SchedulerActor(Controller):
    """The stage actors outlive it under its name."""

    def __init__(self, args: dict[str, Any]) -> None:
        name = ray.get_runtime_context().get_actor_name()
        patience_s = load(args).actors.orphan_timeout_s
        super().__init__(args, Owner(name, _SERVE_NAMESPACE, patience_s))
