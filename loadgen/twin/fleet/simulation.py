"""Several simulated grids behind routers, with the product's own routers, heralds and scaling rule.

A grid tells the routers of itself once in a period, as in life, so they see it as it was up to so
long ago. Every ingress replica is a router of its own, which does not know what the others have
sent since. A grid that is added takes its time to start; one that goes takes no new requests and
ends when the last of its requests has.
"""

from __future__ import annotations

import heapq
import itertools
import random
from typing import Literal

import msgspec

from loadgen.twin.clients import Clients
from loadgen.twin.deployment import Deployment
from medha_actors.core.simulator import NEVER, RequestLog
from medha_actors.fleet.herald import Herald
from medha_actors.fleet.routing import Router
from medha_actors.fleet.scaling import Scaling, load_of
from medha_actors.fleet.views import ask_of
from medha_actors.fleet_config import RoutingConfig, ScalingConfig
from medha_actors.messages import Rejected, Request

# between two decisions on the number of grids, as Serve's autoscaler has it
_LOOK_S = 5.0
_TOO_LONG = Rejected(
    status=400,
    kind="invalid_request_error",
    message="no grid can serve so long a request",
)
_EVENTS = Literal["arrival", "notice", "start", "scaling"]


class FleetOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What there is beside the grids. `start_s`: from the decision to a grid that serves."""

    routing: RoutingConfig = RoutingConfig()
    ingresses: int = 2
    scaling: ScalingConfig | None = None
    start_s: float = 90.0


class Moment(msgspec.Struct, frozen=True):
    """How many grids there were (those that start and those that drain too) from an instant on."""

    at: float
    grids: int
    serving: int


class _Grid:
    """One grid. `since`: it takes resources from then on, `until`: to then."""

    def __init__(
        self, name: str, deployment: Deployment, fleet: FleetSimulation, at: float
    ) -> None:
        self.name = name
        self.simulation = deployment.simulation(follow=fleet.ended)
        self.simulation.begin(at)
        slots = deployment.scheduler.max_running_requests
        self.herald = Herald(self.simulation.scheduler, slots)
        self.since = at
        self.until: float | None = None
        self.due = NEVER  # when it is stepped next


class FleetSimulation:
    """One run."""

    def __init__(
        self, deployment: Deployment, clients: Clients, options: FleetOptions
    ) -> None:
        """`deployment`: `replicas` grids to begin with."""
        self._deployment = deployment
        self._clients = clients
        self._options = options
        config = deployment.config()
        self._cache_name = config.cache_name
        self._page_tokens = config.kv_cache.page_tokens
        self.now = 0.0
        self.refused: dict[str, RequestLog] = {}
        self.moments: list[Moment] = []
        self.grids: list[_Grid] = []  # all there ever were
        self._serving: dict[str, _Grid] = {}
        self._routers = [
            Router(options.routing, random.Random(f"{deployment.seed}/router/{number}"))
            for number in range(options.ingresses)
        ]
        self._turns: list[tuple[float, int]] = []  # when which grid is stepped
        self._events: list[tuple[float, int, _EVENTS, object]] = []
        self._serials = itertools.count()
        self._waiting = 0  # arrivals among the events
        self._scaling = None if options.scaling is None else Scaling(options.scaling)
        self._target = deployment.replicas

    def run(self) -> None:
        """Serve all that the clients send, to the end."""
        for request in self._clients.start():
            self._expect(request)
        for _ in range(self._deployment.replicas):
            self._start(self._new_grid(0.0))
        if self._scaling is not None:
            self._push(_LOOK_S, "scaling", None)
        while True:
            event_at = self._events[0][0] if self._events else NEVER
            turn_at = self._turns[0][0] if self._turns else NEVER
            if event_at <= turn_at:
                if event_at == NEVER or not (self._waiting or self._busy()):
                    return
                self._happen()
            else:
                self._step(event_at)

    def ended(self, log: RequestLog, now: float) -> Request | None:
        """A request has ended; what its client sends next is routed anew."""
        request = self._clients.follow(log, now)
        if request is not None:
            self._expect(request)
        return None

    @property
    def grid_seconds(self) -> float:
        """Seconds that grids took resources, all together."""
        return sum([(grid.until or self.now) - grid.since for grid in self.grids])

    # ---------------------------------------------------------------- what happens

    def _happen(self) -> None:
        at, _, kind, what = heapq.heappop(self._events)
        self.now = at
        if kind == "arrival":
            self._waiting -= 1
            assert isinstance(what, Request)
            self._arrive(what)
        elif kind == "notice":
            assert isinstance(what, _Grid)
            self._tell(what)
        elif kind == "start":
            assert isinstance(what, _Grid)
            self._start(what)
        else:
            self._scale()

    def _step(self, event_at: float) -> None:
        """Step the grid whose turn it is, up to the next grid's turn."""
        at, number = heapq.heappop(self._turns)
        grid = self.grids[number]
        if at != grid.due:
            return  # it was given another turn meanwhile
        limit = min(event_at, self._turns[0][0] if self._turns else NEVER)
        simulation = grid.simulation
        while at <= limit and at < NEVER:
            self.now = at
            simulation.step()
            at = simulation.next_at()
        self._schedule(grid, number, at)
        if at == NEVER and grid.herald.draining and grid.until is None:
            grid.until = self.now
            self._count()

    def _schedule(self, grid: _Grid, number: int, at: float) -> None:
        grid.due = at
        if at < NEVER:
            heapq.heappush(self._turns, (at, number))

    def _busy(self) -> bool:
        return any(grid.due < NEVER for grid in self.grids)

    def _push(self, at: float, kind: _EVENTS, what: object) -> None:
        heapq.heappush(self._events, (at, next(self._serials), kind, what))

    def _expect(self, request: Request) -> None:
        self._waiting += 1
        self._push(request.arrived_at, "arrival", request)

    # ---------------------------------------------------------------- routing

    def _arrive(self, request: Request) -> None:
        router = self._routers[sum(request.id.encode()) % len(self._routers)]
        ask = ask_of(request, self._cache_name, self._page_tokens)
        choice = router.choose(ask, self.now)
        if choice is None:
            self.refused[request.id] = RequestLog(request, _TOO_LONG)
            return
        grid = self._serving[choice.grid]
        grid.simulation.expect(request)
        self._schedule(grid, self.grids.index(grid), grid.simulation.next_at())

    def _tell(self, grid: _Grid) -> None:
        if grid.name not in self._serving:
            return
        notice = grid.herald.tell(self.now)
        for router in self._routers:
            router.heard(grid.name, notice, self.now)
        self._push(self.now + self._options.routing.period_s, "notice", grid)

    # ---------------------------------------------------------------- the number of grids

    def _new_grid(self, at: float) -> _Grid:
        number = len(self.grids)
        seed = self._deployment.seed + number
        deployment = msgspec.structs.replace(self._deployment, replicas=1, seed=seed)
        grid = _Grid(f"grid-{number:03}", deployment, self, at)
        self.grids.append(grid)
        return grid

    def _start(self, grid: _Grid) -> None:
        """It serves from now on."""
        grid.simulation.begin(self.now)
        self._serving[grid.name] = grid
        notice = grid.herald.whole(self.now)
        for router in self._routers:
            router.heard(grid.name, notice, self.now)
        if self._options.routing.router != "random" or self._scaling is not None:
            # not all at once
            first_s = self._options.routing.period_s * (
                0.1 + 0.1 * (len(self.grids) % 9)
            )
            self._push(self.now + first_s, "notice", grid)
        self._count()

    def _scale(self) -> None:
        assert self._scaling is not None
        loads = []
        for grid in self._serving.values():
            view = self._routers[0].grids[grid.name]
            assert view.notice is not None
            loads.append(load_of(view.notice))
        target = self._scaling.decide(loads, self._target, self.now)
        for _ in range(target - self._target):
            self._push(
                self.now + self._options.start_s, "start", self._new_grid(self.now)
            )
        for _ in range(self._target - target):
            self._drain()
        self._target = target
        self._count()
        self._push(self.now + _LOOK_S, "scaling", None)

    def _drain(self) -> None:
        """The grid with the least to do takes no more."""
        if len(self._serving) < 2:
            return
        grid = min(self._serving.values(), key=_live)
        grid.herald.draining = True
        del self._serving[grid.name]
        for router in self._routers:
            router.lost(grid.name)
        if grid.due == NEVER:
            grid.until = self.now

    def _count(self) -> None:
        there = sum([grid.until is None for grid in self.grids])
        self.moments.append(Moment(self.now, there, len(self._serving)))


def _live(grid: _Grid) -> int:
    return len(grid.simulation.scheduler.live.by_id)
