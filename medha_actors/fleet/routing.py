"""Which grid gets a request.

    predicted    where its predicted time to first token is lowest, warm prefixes included; what
                 work they save the fleet counts beside it (work_weight)
    pools        the same, but prompts of long_tokens and more have grids of their own
    prefix       where most of its prompt is found; where little is, as two_choices
    two_choices  of two random grids, that with fewer requests (Serve's own rule)
    random

In all of them only grids that can serve the request at all. A router draws from randomness of its
own, which its owner gives it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from medha_actors.fleet.notices import Notice
from medha_actors.fleet.views import Ask, GridView, Prediction
from medha_actors.fleet_config import RouterName, RoutingConfig


class Choice(NamedTuple):
    """Where a request goes, and what it is predicted to find there."""

    grid: str
    prediction: Prediction


Rule = Callable[[Ask, Sequence[GridView], RoutingConfig, random.Random], GridView]


def _random(
    ask: Ask, grids: Sequence[GridView], settings: RoutingConfig, draw: random.Random
) -> GridView:
    return draw.choice(grids)


def _two_choices(
    ask: Ask, grids: Sequence[GridView], settings: RoutingConfig, draw: random.Random
) -> GridView:
    pair = draw.sample(grids, min(2, len(grids)))
    return min(pair, key=lambda grid: grid.live)


def _prefix(
    ask: Ask, grids: Sequence[GridView], settings: RoutingConfig, draw: random.Random
) -> GridView:
    hits = [grid.hit_tokens(ask) for grid in grids]
    most = max(hits)
    if most < max(1.0, settings.least_hit * ask.prompt_tokens):
        return _two_choices(ask, grids, settings, draw)
    warmest = [grid for grid, hit in zip(grids, hits, strict=True) if hit == most]
    return min(warmest, key=lambda grid: grid.live)


def _predicted(
    ask: Ask, grids: Sequence[GridView], settings: RoutingConfig, draw: random.Random
) -> GridView:
    def cost(number: int) -> tuple[bool, float, int, float]:
        prediction = grids[number].predict(ask)
        seconds = prediction.ttft_s + settings.work_weight * prediction.work_s
        return not prediction.room, seconds, grids[number].live, draw.random()

    return grids[min(range(len(grids)), key=cost)]


def _pools(
    ask: Ask, grids: Sequence[GridView], settings: RoutingConfig, draw: random.Random
) -> GridView:
    reserved = round(settings.long_share * len(grids))
    if len(grids) > 1:
        reserved = min(max(1, reserved), len(grids) - 1)
        ranked = sorted(grids, key=lambda grid: grid.name)
        long = ask.prompt_tokens >= settings.long_tokens
        grids = ranked[:reserved] if long else ranked[reserved:]
    return _predicted(ask, grids, settings, draw)


RULES: dict[RouterName, Rule] = {
    "predicted": _predicted,
    "random": _random,
    "two_choices": _two_choices,
    "prefix": _prefix,
    "pools": _pools,
}


def choose(
    ask: Ask, grids: Sequence[GridView], settings: RoutingConfig, draw: random.Random
) -> GridView | None:
    """The grid that gets the request; None: none of them can serve it."""
    able = [grid for grid in grids if grid.takes(ask)]
    if not able:
        return None
    return RULES[settings.router](ask, able, settings, draw)


class Router:
    """What one ingress replica knows of the fleet."""

    def __init__(self, settings: RoutingConfig, draw: random.Random) -> None:
        self.settings = settings
        self.grids: dict[str, GridView] = {}
        self._draw = draw

    def heard(self, name: str, notice: Notice, now: float) -> bool:
        """A notice of a grid, perhaps a new one; see GridView.heard."""
        if name not in self.grids:
            self.grids[name] = GridView(name)
        return self.grids[name].heard(notice, now)

    def lost(self, name: str) -> None:
        """A grid is gone."""
        self.grids.pop(name, None)

    def choose(
        self, ask: Ask, now: float, among: Sequence[str] | None = None
    ) -> Choice | None:
        """The grid for a request that is sent there now, of these (None: of all it knows); None:
        there is none."""
        grids = list(self.grids.values())
        if among is not None:
            grids = [self.grids[name] for name in among if name in self.grids]
        grid = choose(ask, grids, self.settings, self._draw)
        if grid is None:
            return None
        prediction = grid.predict(ask)
        grid.sent(prediction.work_s, now)
        return Choice(grid.name, prediction)
