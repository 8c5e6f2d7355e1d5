"""The seat of the router in an ingress replica's process: what Serve's request router and the
replica's own engine both use. There is one for each fleet, by the name of its deployment.

Serve makes the request router (request_router.py) and runs it in a thread of its own; the notices
come on the replica's loop. Hence one object for both, behind a lock.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from medha_actors.config import ModelLoadingConfig
from medha_actors.fleet.notices import Notice
from medha_actors.fleet.routing import Choice, Router
from medha_actors.fleet.views import Ask
from medha_actors.fleet_config import RoutingConfig


class Member(NamedTuple):
    """A grid as Serve knows it: its controller's name, and which model it has (`edition_of`)."""

    controller: str
    edition: str


Members = Mapping[str, Member]  # by the ids of their replicas


class Seat:
    """Names are Serve's ids of the grids' replicas."""

    def __init__(self, settings: RoutingConfig, draw: random.Random) -> None:
        self._router = Router(settings, draw)
        self._lock = threading.Lock()
        self._everybody: Members = {}
        self._members: Members = {}
        self._edition: str | None = None
        self._watch: Callable[[Members], None] | None = None

    def configure(self, settings: RoutingConfig) -> None:
        """New settings, for what is known."""
        with self._lock:
            self._router.settings = settings

    def watch(self, edition: str, changed: Callable[[Members], None]) -> None:
        """`changed` is called with who is there of this edition, now and at each change, in
        whatever thread. In an update to another model, Serve's grids are of both for a while."""
        self._edition = edition
        self._watch = changed
        self.members(self._everybody)

    def members(self, everybody: Members) -> None:
        """Who is there, as Serve says."""
        with self._lock:
            self._everybody = dict(everybody)
            mine = {name: one for name, one in everybody.items() if self._is_mine(one)}
            for name in self._members.keys() - mine.keys():
                self._router.lost(name)
            self._members = mine
        if self._watch is not None:
            self._watch(mine)

    def takes(self, name: str) -> bool:
        """Whether a grid may be chosen here."""
        member = self._everybody.get(name)
        return member is None or self._is_mine(member)

    def _is_mine(self, member: Member) -> bool:
        return self._edition in (None, member.edition)

    def heard(self, name: str, notice: Notice) -> bool:
        """See GridView.heard."""
        with self._lock:
            return self._router.heard(name, notice, time.monotonic())

    def choose(self, ask: Ask, among: Sequence[str]) -> Choice | None:
        """See Router.choose."""
        with self._lock:
            return self._router.choose(ask, time.monotonic(), among)


def edition_of(loading: ModelLoadingConfig) -> str:
    """A name for a model as it is configured: equal for all who tokenise for it and compute it."""
    return hashlib.sha256(
        msgspec.json.encode(loading, order="deterministic")
    ).hexdigest()[:16]


_SEATS: dict[str, Seat] = {}


def seat_of(fleet: str) -> Seat:
    """This process's, of one fleet."""
    return _SEATS.setdefault(fleet, Seat(RoutingConfig(), random.Random()))
