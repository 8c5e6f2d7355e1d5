"""The section `fleet` of the configuration tree: how many grids serve a model, and who gets which
request."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from medha_actors.quantities import Share, Tokens

RouterName = Literal["predicted", "random", "two_choices", "prefix", "pools"]
Grids = Annotated[int, Meta(ge=1, le=1024)]
Wait = Annotated[float, Meta(ge=0.0, le=86_400.0)]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the tree."""


class RoutingConfig(_Section, frozen=True):
    """Which grid gets a request (fleet/routing.py has the rules)."""

    router: RouterName = "predicted"
    # how often a grid tells the routers of itself, at most
    period_s: Annotated[float, Meta(ge=0.01, le=10.0)] = 0.1
    # predicted: a second of work that a warm prefix saves the fleet is worth so many seconds of
    # this request's time to first token (simulated: the more, the later short ones are)
    work_weight: Annotated[float, Meta(ge=0.0, le=100.0)] = 0.0
    # pools: prompts from so many tokens on have grids of their own, this share of them
    long_tokens: Tokens = 32_768
    long_share: Share = 0.25
    # prefix: with less than this of a prompt found anywhere, two choices decide
    least_hit: Share = 0.1


class ScalingConfig(_Section, frozen=True):
    """How many grids there are (fleet/scaling.py has the rule)."""

    min_grids: Grids = 1
    max_grids: Grids = 1
    # of a grid's time that arriving work fills, on average
    target_load: Annotated[float, Meta(ge=0.05, le=1.0)] = 0.7
    # of what waits may be predicted to be late, before there are more grids
    late_share: Annotated[float, Meta(ge=0.0, le=0.99)] = 0.05
    # work that is late is to be done by more grids in this time
    catch_up_s: Annotated[float, Meta(ge=1.0, le=86_400.0)] = 60.0
    # of the load that counts, the mean of so long
    window_s: Annotated[float, Meta(ge=1.0, le=86_400.0)] = 60.0
    up_after_s: Wait = 10.0
    down_after_s: Wait = 600.0


class FleetConfig(_Section, frozen=True):
    """Grids of stage actors, each with a scheduler of its own, behind the same ingress replicas."""

    # None: one grid, which the ingress replicas reach without a router
    num_grids: Grids | None = None
    routing: RoutingConfig = RoutingConfig()
    # None: there are always num_grids
    scaling: ScalingConfig | None = None
    # In an update all new grids start beside the old ones, for which there has to be
    # room. False: one after the other is drained, and replaced.
    surge: bool = False
