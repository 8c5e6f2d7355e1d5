"""What Serve calls: the request router, the autoscaling policy and the deployments, without Ray."""

from __future__ import annotations

import pickle
import random
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from ray.cloudpickle import dumps, register_pickle_by_value, unregister_pickle_by_value
from ray.serve.config import AutoscalingContext, AutoscalingPolicy, RequestRouterConfig

from deployments.app import build_app
from deployments.fleet.autoscaling import GridScaling, stats_of
from deployments.fleet.grids import Grid
from deployments.fleet.request_router import GridRouter, members_of, ranked
from deployments.fleet.seat import Member, Seat, edition_of
from deployments.fleet.seat import seat_of as seat_at
from medha_actors.config import load
from medha_actors.errors import ConfigError
from medha_actors.fleet.views import Ask
from medha_actors.fleet_config import RoutingConfig
from tests.fleet.test_routing import IDLE, waiting

ASK = Ask(prompt_tokens=640, output_tokens=10)
FLEET: dict[str, Any] = {
    "model_loading_config": {"model_source": "random"},
    "fleet": {
        "num_grids": 2,
        "scaling": {
            "min_grids": 1,
            "max_grids": 4,
            "up_after_s": 5.0,
            "down_after_s": 60.0,
        },
    },
}


def replica(name: str, controller: str | None = None) -> Any:
    metadata = {} if controller is None else {"controller": controller, "edition": "e"}
    return SimpleNamespace(
        replica_id=SimpleNamespace(unique_id=name), replica_metadata=metadata
    )


def seat_of(**notices: Any) -> Seat:
    place = Seat(RoutingConfig(work_weight=0.0), random.Random(0))
    for name, notice in notices.items():
        assert place.heard(name, notice)
    return place


def pending(*arguments: Any) -> Any:
    return SimpleNamespace(args=list(arguments))


def test_the_router_chooses_where_the_first_token_is_soonest():
    candidates = [replica("busy"), replica("idle"), replica("unheard")]
    place = seat_of(busy=waiting(9.0), idle=IDLE)
    assert ranked(place, candidates, pending(ASK)) == [[candidates[1]]]
    assert ranked(place, candidates, pending(ASK, ("idle",))) == [[candidates[0]]]


def test_before_anything_was_heard_and_without_an_ask_anybody_will_do():
    candidates = [replica("a"), replica("b")]
    assert ranked(seat_of(), candidates, pending(ASK)) == [candidates]
    assert ranked(seat_of(), candidates, pending(ASK, ("a",))) == [[candidates[1]]]
    assert ranked(seat_of(a=IDLE), candidates, None) == [candidates]
    assert ranked(seat_of(a=IDLE), candidates, pending("drain")) == [candidates]


def test_who_has_not_said_where_its_controller_is_is_no_member_yet():
    members = members_of([replica("a", "controller-a"), replica("b")])
    assert members == {"a": Member("controller-a", "e")}


def test_a_grid_that_serve_has_taken_out_is_forgotten():
    place = seat_of(a=IDLE, b=waiting(5.0))
    place.members({"a": Member("x", "e"), "b": Member("y", "e")})
    place.members({"b": Member("y", "e")})
    assert place.choose(ASK, ["a", "b"]).grid == "b"


def test_in_an_update_to_another_model_each_replica_keeps_to_the_grids_of_its_own():
    place = seat_of()
    everybody = {"old": Member("x", "before"), "new": Member("y", "after")}
    place.members(everybody)
    seen = []
    place.watch("after", seen.append)
    assert seen == [{"new": everybody["new"]}]
    candidates = [replica("old"), replica("new")]
    assert ranked(place, candidates, pending(ASK)) == [[candidates[1]]]
    place.members({"old": everybody["old"]})
    assert seen[-1] == {}


def test_an_edition_is_the_model_as_it_is_configured():
    first = load(FLEET)
    other = load({**FLEET, "scheduler": {"policy": "edf"}})
    model = {"model_source": "random", "dtype": "float32"}
    third = load({**FLEET, "model_loading_config": model})
    assert edition_of(first.model_loading_config) == edition_of(
        other.model_loading_config
    )
    assert edition_of(first.model_loading_config) != edition_of(
        third.model_loading_config
    )


def test_serve_finds_both_classes_by_their_paths():
    """As build_app names them; Serve imports them in its own processes."""
    grids = grids_of(build_app(FLEET))
    router = grids._deployment_config.request_router_config
    assert isinstance(router, RequestRouterConfig)
    assert router.get_request_router_class() is GridRouter
    assert router.request_router_kwargs["router"] == "predicted"
    scaling = grids._deployment_config.autoscaling_config
    assert isinstance(scaling.policy, AutoscalingPolicy)
    assert scaling.policy.get_policy() is GridScaling
    assert (scaling.min_replicas, scaling.initial_replicas, scaling.max_replicas) == (
        1,
        2,
        4,
    )
    GridScaling(**scaling.policy.policy_kwargs)


@pytest.mark.parametrize("kind", [GridRouter, GridScaling, Grid])
def test_serve_can_send_the_classes_with_their_modules(kind):
    module = sys.modules[kind.__module__]
    register_pickle_by_value(module)
    try:
        packed = dumps(kind)
    finally:
        unregister_pickle_by_value(module)
    assert pickle.loads(packed).__name__ == kind.__name__


def grids_of(application: Any) -> Any:
    """The deployment of grids, which the ingress deployment is bound to."""
    return application._bound_deployment.init_args[1]._bound_deployment


def test_without_scaling_there_are_as_many_replicas_as_grids():
    fixed = {**FLEET, "fleet": {"num_grids": 3}}
    grids = grids_of(build_app(fixed))
    assert grids.num_replicas == 3
    grace_s = grids._deployment_config.graceful_shutdown_timeout_s
    assert grace_s > load(fixed).drain_timeout_s
    assert grids._deployment_config.max_surge_percent == 0
    surging = grids_of(build_app({**FLEET, "fleet": {"num_grids": 3, "surge": True}}))
    assert surging._deployment_config.max_surge_percent == 100


def test_each_replica_has_room_for_all_of_its_grid():
    """So Serve puts a grid's actors where its replica is, and no node has parts of two grids."""
    shape = {"parallel": {"spp": 2, "kvp": 2}, "actors": {"num_cpus": 0.5}}
    spread = {"placement_group_config": {"strategy": "STRICT_SPREAD"}}
    grids = grids_of(build_app({**FLEET, **shape, **spread}))
    room = grids._replica_config
    assert room.placement_group_bundles == [{"CPU": 0.5}] * 4
    assert room.placement_group_strategy == "STRICT_SPREAD"
    assert grids.ray_actor_options["num_cpus"] == 0


def test_several_models_share_the_ingress_and_have_grids_of_their_own():
    small = {"model_loading_config": {"model_source": "random", "model_id": "small"}}
    large = {
        **FLEET,
        "model_loading_config": {"model_source": "random", "model_id": "large"},
    }
    deployment = {"num_replicas": 2}
    application = build_app({"models": [small, large], "deployment_config": deployment})
    ingress = application._bound_deployment
    assert ingress.num_replicas == 2
    assert not ingress._deployment_config.deployment_actors
    fleets = [handle._bound_deployment for handle in ingress.init_args[1:]]
    assert [fleet.name for fleet in fleets] == ["grids-small", "grids-large"]
    routers = [fleet._deployment_config.request_router_config for fleet in fleets]
    assert [one.request_router_kwargs["fleet"] for one in routers] == [
        "grids-small",
        "grids-large",
    ]
    assert [load(fleet.init_args[0]).fleet.num_grids for fleet in fleets] == [1, 2]


def test_each_fleet_has_a_seat_of_its_own_in_a_process():
    first = seat_at("grids-one")
    assert seat_at("grids-one") is first
    assert seat_at("grids-two") is not first
    first.members({"a": Member("controller-a", "e")})
    heard = []
    seat_at("grids-two").watch("e", heard.append)
    assert heard == [{}]


def test_without_a_fleet_everything_is_as_it_was():
    application = build_app({"model_loading_config": {"model_source": "random"}})
    (actor,) = application._bound_deployment._deployment_config.deployment_actors
    assert actor.name == "controller"
    assert len(application._bound_deployment.init_args) == 1


@pytest.mark.parametrize(
    ("fleet", "key"),
    [
        ({"num_grids": 0}, "fleet.num_grids"),
        ({"num_grids": 9, "scaling": {"max_grids": 4}}, "fleet.num_grids"),
        (
            {"num_grids": 2, "scaling": {"min_grids": 3, "max_grids": 2}},
            "fleet.scaling.min_grids",
        ),
        ({"routing": {"period_s": 0.0}}, "fleet.routing.period_s"),
        ({"routing": {"router": "clever"}}, "fleet.routing.router"),
        ({"scaling": {"target_load": 2.0}}, "fleet.scaling.target_load"),
        ({"grids": 2}, "grids"),
    ],
)
def test_the_configuration_is_bounded(fleet, key):
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        load({"model_loading_config": {}, "fleet": fleet})


def context_of(recorded: dict[str, dict[str, float]], target: int, now: float) -> Any:
    return AutoscalingContext(
        deployment_id=None,
        deployment_name="grids",
        app_name="medha",
        current_num_replicas=len(recorded),
        target_num_replicas=target,
        running_replicas=list(recorded),
        total_num_requests=0.0,
        total_queued_requests=0.0,
        aggregated_metrics={
            name: {replica: stats[name] for replica, stats in recorded.items()}
            for name in stats_of(None)
        },
        raw_metrics={},
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=now,
        config=None,
    )


def test_serves_autoscaler_gets_what_the_rule_says():
    scaling = GridScaling(min_grids=1, max_grids=4, up_after_s=5.0, catch_up_s=10.0)
    calm = stats_of(IDLE)
    late = {**calm, "queued": 20.0, "late": 10.0, "late_s": 15.0}
    assert scaling(context_of({"a": calm}, 1, 0.0)) == (1, {})
    assert scaling(context_of({"a": late}, 1, 10.0)) == (1, {})
    assert scaling(context_of({"a": late}, 1, 16.0)) == (3, {})


def test_a_grid_that_starts_records_zeros():
    assert set(stats_of(None).values()) == {0.0}
    assert stats_of(IDLE).keys() == stats_of(None).keys()
