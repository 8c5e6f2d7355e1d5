"""The simulated server: determinism, conservation, and cases that can be solved by hand."""

import random

import msgspec
import pytest
from twin_world import TOKEN_S, by_hand, convoy, deployment_of, request, waits

from loadgen.errors import LoadgenError
from loadgen.twin.options import DeploymentOptions, read_profile
from loadgen.twin.options import deployment_of as chosen
from loadgen.twin.replay import idle_points, play
from medha_actors.core.group_load import load_of

ONE_AT_A_TIME = {"max_chunk_tokens": 100, "max_batch_tokens": 100}


def times(played):
    return [list(record.token_times) for record in played.records]


def test_a_seed_decides_everything():
    noisy = deployment_of(spp=2, noise=0.1)
    other = msgspec.structs.replace(noisy, seed=1)
    assert times(play(noisy, convoy())) == times(play(noisy, convoy()))
    assert times(play(noisy, convoy())) != times(play(other, convoy()))


@pytest.mark.parametrize(
    "policy",
    ["fcfs", "fcfs_chunked", "edf", "lrs", "lars", "hrrn", "spf", "relegation"],
)
@pytest.mark.parametrize("kvp", [1, 2])
def test_every_token_is_computed_once(policy, kvp, monkeypatch):
    """Rows computed by the groups that write: the prompt and every generated token but the last, of
    each request."""
    seen = {}
    deployment = deployment_of(
        policy,
        spp=2,
        kvp=kvp,
        max_tokens_per_kvp_group=1500,
        scheduler={"long_share": 0.5},
    )
    simulation = deployment.simulation()
    dispatch = simulation.scheduler.next_batch

    def watched(now):
        batch = dispatch(now)
        for message in batch.groups if batch else ():
            for span in message.spans if message else ():
                if span.writes:
                    seen.setdefault(span.request_id, []).extend(
                        range(span.start, span.stop)
                    )
        return batch

    monkeypatch.setattr(simulation.scheduler, "next_batch", watched)
    monkeypatch.setattr(type(deployment), "simulation", lambda self, **more: simulation)
    requests = convoy()
    played = play(deployment, requests)
    for planned, record in zip(requests, played.records, strict=True):
        assert record.completed
        assert len(record.token_times) == planned.output_tokens
        assert seen[record.id] == list(
            range(planned.prompt_tokens + planned.output_tokens - 1)
        )
    assert played.batches > 0


def test_one_request():
    """A prompt of 1,000 rows, then a token a millisecond."""
    record = play(by_hand(), [request(1000, 5, at=3.0)]).records[0]
    assert record.token_times[0] - record.sent_at == pytest.approx(1000 * TOKEN_S)
    assert [
        b - a for a, b in zip(record.token_times, record.token_times[1:], strict=False)
    ] == pytest.approx([1e-3] * 4)


def test_a_queue_with_constant_service_times():
    """M/D/1 at load 0.7: the mean wait is rho / (2 (1 - rho)) services (Pollaczek and
    Khinchine)."""
    rng = random.Random(3)
    at = 0.0
    requests = []
    for index in range(6000):
        at += rng.expovariate(7.0)
        requests.append(request(100, 1, at, index))
    played = play(by_hand(scheduler=ONE_AT_A_TIME), requests)
    found = waits(played.records, 0.1)
    assert sum(found) / len(found) == pytest.approx(0.1 * 0.7 / (2 * 0.3), rel=0.12)
    assert played.busy[0] == pytest.approx(0.7, rel=0.03)


def test_two_classes_under_first_come_first_served():
    """M/G/1: both classes wait lambda E[S^2] / (2 (1 - rho)), whatever their own length."""
    rng = random.Random(5)
    at = 0.0
    requests = []
    for index in range(8000):
        at += rng.expovariate(2.0)
        long = rng.random() < 0.1
        requests.append(
            request(1000 if long else 100, 1, at, index, "long" if long else "short")
        )
    played = play(by_hand(scheduler=ONE_AT_A_TIME), requests)
    rho = 2.0 * (0.9 * 0.1 + 0.1 * 1.0)
    second_moment = 0.9 * 0.1**2 + 0.1 * 1.0**2
    expected = 2.0 * second_moment / (2 * (1 - rho))
    long = [record for record in played.records if record.kind == "long"]
    found = waits(long, 1.0)
    assert sum(found) / len(found) == pytest.approx(expected, rel=0.2)


def test_short_ones_do_not_wait_for_a_long_one_under_lars_or_spf():
    load = [request(8000, 1, 0.0, 0, "long"), request(100, 1, 1.0, 1)]
    first = {
        policy: play(by_hand(policy, tpot_s=0.2), load).records[1].token_times[0] - 1.0
        for policy in ("fcfs", "lars", "spf")
    }
    assert first["fcfs"] > 6.0
    assert first["lars"] < 1.0
    assert first["spf"] < 0.5


def test_a_long_prefill_that_leaves_room_lets_short_ones_through_sooner():
    shorts = [request(60, 8, 0.5 + 0.37 * i, i + 1) for i in range(20)]
    load = [request(8000, 1, 0.0, 0, "long"), *shorts]

    def median(share):
        records = play(
            by_hand("spf", tpot_s=0.4, scheduler={"long_share": share}), load
        ).records[1:]
        return sorted(record.token_times[0] - record.sent_at for record in records)[10]

    assert median(0.25) < 0.7 * median(1.0)


def test_an_old_long_prefill_goes_before_new_short_ones():
    """Ageing: shortest first starves nobody, not even when short ones alone fill the server."""
    shorts = [request(100, 1, 0.1 * i, i + 1) for i in range(400)]
    records = play(
        by_hand("spf", tpot_s=0.1, scheduler=ONE_AT_A_TIME),
        [request(300, 1, 0.05, 0, "long"), *shorts],
    ).records
    assert records[0].token_times[0] < 20 * 0.3 + 2


def test_a_closed_loop_keeps_its_concurrency():
    requests = [request(100, 3, None, index) for index in range(12)]
    records = play(by_hand("lars"), requests, concurrency=3).records
    assert all(record.completed for record in records)
    changes = sorted(
        [(r.sent_at, 1) for r in records] + [(r.ended_at, -1) for r in records],
        key=lambda c: (c[0], c[1]),
    )
    level = 0
    highest = 0
    for _, change in changes:
        level += change
        highest = max(highest, level)
    assert highest == 3


def test_replicas_share_the_requests():
    load = [request(1000, 1, 0.0, index) for index in range(4)]
    assert play(by_hand(replicas=4), load).duration_s == pytest.approx(1.0)
    assert play(by_hand(), load).duration_s == pytest.approx(4.0)


def test_idle_points_rise():
    points = idle_points(deployment_of(spp=2), convoy())
    assert [length for length, _ in points] == sorted({length for length, _ in points})
    assert [seconds for _, seconds in points] == sorted(
        seconds for _, seconds in points
    )


@pytest.mark.slow
def test_a_hundred_thousand_waiting_requests_cost_no_more_than_a_few():
    """Batches looked at per request stay the same: no work grows with the queue."""
    played = {}
    for count in (1000, 20_000):
        load = [request(64, 1, 0.0, index) for index in range(count)]
        played[count] = play(by_hand("lars", tpot_s=0.3), load).batches / count
    assert played[20_000] == pytest.approx(played[1000], rel=0.1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "nobody"}, "--model nobody: known are"),
        ({"gpu": "abacus"}, "--gpu abacus: known are"),
        ({"tp": 0}, "--tp must be at least 1"),
        ({"policy": "luck"}, "--policy or --scheduler"),
        ({"model": "llama-3-70b"}, "does not fit"),
        (
            {"tp": 12},
            "parallel.tp is 12, but the model has 32 heads, 4 to each of its 8 KV heads",
        ),
        ({"spp": 64}, "has only 32 layers"),
        ({"profile": "/nowhere.json"}, "cannot read"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(given, message):
    with pytest.raises(LoadgenError, match=message):
        chosen(DeploymentOptions(**given), 8192)


def test_a_calibration_is_read(tmp_path):
    file = tmp_path / "profile.json"
    file.write_text('{"stages":[{"rows":[[1,0.5]]}]}')
    assert read_profile(str(file)).stages[0].rows == ((1, 0.5),)
    assert load_of(None).rows == 0
