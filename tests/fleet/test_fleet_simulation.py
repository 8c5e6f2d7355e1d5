"""The twin with several grids behind routers, on cases whose outcome is known."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from twin_world import by_hand, convoy, deployment_of, request

from loadgen.twin.fleet.playing import play_fleet
from loadgen.twin.fleet.simulation import FleetOptions
from loadgen.twin.replay import play
from loadgen.workload.options import PaceOptions, WorkloadOptions
from loadgen.workload.plan import build_plan
from medha_actors.fleet.routing import RULES
from medha_actors.fleet_config import RoutingConfig, ScalingConfig


def options_of(router="predicted", ingresses=1, scaling=None, start_s=5.0, **routing):
    return FleetOptions(
        routing=RoutingConfig(router=router, **routing),
        ingresses=ingresses,
        scaling=scaling,
        start_s=start_s,
    )


def chats(count=30, rate=2.0):
    workload = WorkloadOptions(
        sessions=("chat",),
        num_sessions=count,
        turns="3:5",
        output_len="10:40",
        pause_ms="500:2000",
    )
    return build_plan(workload, PaceOptions(request_rate=rate)).requests


def times(played):
    return [list(record.token_times) for record in played.records]


@pytest.mark.parametrize("router", RULES)
def test_one_grid_behind_a_router_is_that_grid(router):
    deployment = deployment_of()
    requests = convoy(40)
    assert times(play_fleet(deployment, requests, options_of(router))) == times(
        play(deployment, requests)
    )


def test_sessions_on_one_grid_too():
    deployment = deployment_of()
    assert times(play_fleet(deployment, chats(), options_of())) == times(
        play(deployment, chats())
    )


@pytest.mark.parametrize("router", RULES)
def test_every_request_is_served_once_and_a_seed_decides_everything(router):
    deployment = deployment_of(replicas=3)
    requests = [*convoy(60, rate=4.0)]
    options = options_of(router, ingresses=2, long_tokens=2000)
    played = play_fleet(deployment, requests, options)
    assert all(record.completed for record in played.records)
    assert [len(record.token_times) for record in played.records] == [
        one.output_tokens for one in requests
    ]
    assert times(played) == times(play_fleet(deployment, requests, options))
    assert played.grid_seconds == pytest.approx(3 * played.duration_s, rel=1e-6)


def test_two_at_once_on_two_grids_do_not_wait_for_each_other():
    deployment = by_hand("fcfs", replicas=2)
    pair = [request(1000, 1, 0.5, 0), request(1000, 1, 0.5, 1)]
    first, second = play_fleet(deployment, pair, options_of()).records
    assert first.token_times[0] == second.token_times[0] == pytest.approx(1.5)
    # a router does not know what another one has sent since the last notice: both may
    # take the same grid, and notices are that old
    late = [request(1000, 1, 0.5, 0), request(1000, 1, 0.8, 1)]
    apart = play_fleet(deployment, late, options_of(ingresses=2)).records
    assert [record.token_times[0] for record in apart] == pytest.approx([1.5, 1.8])


def test_a_router_that_predicts_finds_warm_prefixes_and_one_that_draws_does_not():
    deployment = deployment_of(replicas=4)

    def hits(router):
        records = play_fleet(deployment, chats(), options_of(router)).records
        return sum(record.cached_tokens for record in records) / sum(
            record.known_tokens for record in records
        )

    assert hits("predicted") > 0.9
    assert hits("prefix") > 0.9
    assert hits("random") < 0.7  # the beginning of all chats is soon everywhere


def test_short_ones_are_sooner_than_with_random_routing():
    deployment = deployment_of(replicas=4)
    requests = convoy(200, rate=6.0)

    def slow(router):
        records = play_fleet(deployment, requests, options_of(router)).records
        waits = sorted(
            one.token_times[0] - one.sent_at for one in records if one.kind == "short"
        )
        return waits[len(waits) * 9 // 10]

    assert slow("predicted") < 0.7 * slow("random")


def test_what_no_grid_can_serve_is_refused():
    deployment = deployment_of(replicas=2)
    too_long = replace(request(100, 1, 1.0, 1), prompt_tokens=200_000)
    fine, refused = play_fleet(
        deployment, [request(100, 1, 0.0, 0), too_long], options_of()
    ).records
    assert fine.completed
    assert refused.status == 400


SCALING = ScalingConfig(
    min_grids=1,
    max_grids=4,
    window_s=10.0,
    up_after_s=5.0,
    down_after_s=30.0,
    target_load=0.6,
)


def test_grids_come_with_the_traffic_and_go_without_losing_anything():
    busy = convoy(240, rate=4.0)
    end = busy[-1].at
    calm = [
        replace(one, index=240 + one.index, at=end + 5 + one.at)
        for one in convoy(60, rate=0.2)
    ]
    deployment = deployment_of(replicas=1)
    played = play_fleet(deployment, [*busy, *calm], options_of(scaling=SCALING))
    assert all(record.completed for record in played.records)
    counts = [moment.grids for moment in played.moments]
    assert max(counts) >= 3
    assert counts[-1] == 1
    assert played.grid_seconds < 3 * played.duration_s
    alone = play_fleet(deployment, [*busy, *calm], options_of())
    assert alone.grid_seconds == pytest.approx(alone.duration_s)

    def waited_s(one):
        return sum(record.token_times[0] - record.sent_at for record in one.records)

    assert waited_s(played) < 0.5 * waited_s(alone)
