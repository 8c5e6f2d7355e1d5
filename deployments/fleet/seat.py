"""The seat of the router in an ingress replica's process: what Serve's request router and the
replica's own engine both use. There is one for each fleet, by the name of its deployment.

Serve makes the request router (request_router.py) and runs it in a thread of its own; the notices
come on the replica's loop. Hence one object for both, behind a lock.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from medha_actors.fleet.notices import Notice
from medha_actors.fleet.routing import Choice, Router
from medha_actors.fleet.views import Ask
from medha_actors.fleet_config import RoutingConfig

# Replica ids, and the names of the controllers of their grids.
Members = Mapping[str, str]


class Seat:
    """Names are Serve's ids of the grids' replicas."""

    def __init__(self, settings: RoutingConfig, draw: random.Random) -> None:
        self._router = Router(settings, draw)
        self._lock = threading.Lock()
        self._members: Members = {}
        self._watch: Callable[[Members], None] | None = None

    def configure(self, settings: RoutingConfig) -> None:
        """New settings, for what is known."""
        with self._lock:
            self._router.settings = settings

    def watch(self, changed: Callable[[Members], None]) -> None:
        """`changed` is called with who is there, now and at each change, in whatever thread."""
        self._watch = changed
        changed(self._members)

    def members(self, members: Members) -> None:
        """Who is there, as Serve says."""
        with self._lock:
            for name in self._members.keys() - members.keys():
                self._router.lost(name)
            self._members = dict(members)
        if self._watch is not None:
            self._watch(self._members)

    def heard(self, name: str, notice: Notice) -> bool:
        """See GridView.heard."""
        with self._lock:
            return self._router.heard(name, notice, time.monotonic())

    def choose(self, ask: Ask, among: Sequence[str]) -> Choice | None:
        """See Router.choose."""
        with self._lock:
            return self._router.choose(ask, time.monotonic(), among)


_SEATS: dict[str, Seat] = {}


def seat_of(fleet: str) -> Seat:
    """This process's, of one fleet."""
    return _SEATS.setdefault(fleet, Seat(RoutingConfig(), random.Random()))
