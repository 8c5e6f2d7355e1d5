"""Several engines as one: the contract of every engine, and what happens when one of them refuses,
is away or is lost."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Collection
from typing import Any

import pytest
from msgspec.structs import replace

from deployments.fleet.engine import FleetEngine
from deployments.fleet.membership import Membership
from deployments.fleet.reports import merged
from deployments.fleet.seat import Member, Seat
from medha_actors.actors.engine import RayEngine
from medha_actors.bench.played import PlayedController, accepting
from medha_actors.errors import UnavailableError
from medha_actors.fleet.views import Ask
from medha_actors.fleet_config import RoutingConfig
from medha_actors.messages import Rejected, Resumed, unpack_tokens
from medha_actors.telemetry.histogram import Family
from tests.engine_contract import CHECKS, Heard, ask, asking, submitted
from tests.fakes import FakeEngine, accept, finished, token
from tests.played import played
from tests.serve.test_fake_engine import bounded, slowly

FULL = Rejected(status=429, kind="rate_limit_error", message="full", retry_after_s=3.0)


class InTurn:
    """Picks one grid after the other."""

    def __init__(self, fleet: FleetEngine | None = None) -> None:
        self.fleet = fleet
        self.asked: list[Ask] = []
        self._turns = itertools.count()

    async def __call__(self, ask: Ask, left_out: Collection[str]) -> str | None:
        self.asked.append(ask)
        assert self.fleet is not None
        names = [name for name in sorted(self.fleet.grids) if name not in left_out]
        return names[next(self._turns) % len(names)] if names else None


def fleet_of(**grids: Any) -> FleetEngine:
    pick = InTurn()
    fleet = pick.fleet = FleetEngine(pick, "toy", 16)
    for name, grid in grids.items():
        fleet.join(name, grid)
    return fleet


@pytest.mark.parametrize("check", CHECKS)
async def test_several_engines_keep_the_contract_of_one(check: Any) -> None:
    await check(fleet_of(a=FakeEngine(slowly, bounded), b=FakeEngine(slowly, bounded)))


async def test_requests_go_where_they_are_sent() -> None:
    one = FakeEngine(slowly, accept)
    two = FakeEngine(slowly, accept)
    fleet = fleet_of(a=one, b=two)
    for number in range(6):
        await (await ask(fleet, asking(f"r{number}", 3))).end()
    assert [len(one.requests), len(two.requests)] == [3, 3]


async def test_a_grid_that_is_full_or_away_sends_them_on() -> None:
    full = FakeEngine(slowly, lambda request: FULL)
    away = FakeEngine(slowly, accept)
    away.is_ready = False
    good = FakeEngine(slowly, accept)
    fleet = fleet_of(a=full, b=away, c=good)
    for number in range(4):
        heard = await ask(fleet, asking(f"r{number}", 3))
        await heard.end()
        heard.check_whole()
    assert len(good.requests) == 4
    assert away.requests == []


async def test_when_all_refuse_the_client_is_told_so() -> None:
    fleet = fleet_of(a=FakeEngine(slowly, lambda request: FULL))
    heard = await submitted(fleet, Heard(asking("r", 3)))
    assert heard.answer == FULL
    with pytest.raises(UnavailableError):
        await submitted(fleet_of(), Heard(asking("r", 3)))


async def test_in_an_overload_few_grids_are_asked_and_the_soonest_is_told() -> None:
    """Each of a hundred grids would refuse it, which would cost all of them time."""

    def full(retry_after_s: float) -> FakeEngine:
        return FakeEngine(
            slowly, lambda request: replace(FULL, retry_after_s=retry_after_s)
        )

    grids = {f"g{number:02}": full(100.0 - number) for number in range(100)}
    draining = FakeEngine(
        slowly, lambda request: replace(FULL, status=503, retry_after_s=99.5)
    )
    fleet = fleet_of(a=draining, **grids)
    heard = await submitted(fleet, Heard(asking("r", 3)))
    asked = [grid for grid in grids.values() if grid.requests]
    assert len(asked) == 3
    assert len(draining.requests) == 1
    assert isinstance(heard.answer, Rejected)
    assert heard.answer.retry_after_s == min(
        [grid.answer(None).retry_after_s for grid in asked]
    )


async def test_a_request_that_can_never_run_is_refused_once() -> None:
    grids = {name: FakeEngine(slowly, bounded) for name in "ab"}
    heard = await submitted(fleet_of(**grids), Heard(asking("r", 3, prompt=200_000)))
    assert isinstance(heard.answer, Rejected)
    assert heard.answer.status == 400
    assert sum(len(grid.requests) for grid in grids.values()) == 1


async def test_an_answer_goes_on_where_its_record_is() -> None:
    grids = {name: FakeEngine(slowly, accept) for name in "abc"}
    fleet = fleet_of(**grids)
    first = asking("one", 5)
    await (await ask(fleet, replace(first, answer_id="answer"))).end()
    owner = next(name for name, grid in grids.items() if grid.requests)
    record = await fleet.record("answer")
    assert record is not None
    again = replace(first, id="two", answer_id="answer", resumed=Resumed(token_ids=b""))
    await (await ask(fleet, again)).end()
    assert [request.id for request in grids[owner].requests] == ["one", "two"]


async def settled() -> None:
    """Whatever can happen by itself has."""
    for _ in range(100):
        await asyncio.sleep(0)


async def test_the_requests_of_a_lost_grid_go_on_in_another() -> None:
    """The client hears every token once, whoever drew it."""
    async with played() as (one, first), played() as (two, second):
        fleet = fleet_of(a=one)
        heard = await ask(fleet, asking("r", 6))
        request = heard.request
        first.say([token(request, index, 100 + index) for index in range(3)])
        await heard.until(3)
        fleet.join("b", two)
        await fleet.lost("a", one)
        await settled()
        (again,) = second.requests
        assert again.resumed is not None
        assert unpack_tokens(again.resumed.token_ids) == [100, 101, 102]
        rest = [token(request, index, 100 + index) for index in range(3, 6)]
        second.say([*rest, finished(request, 6)])
        await heard.end()
        heard.check_whole()
        assert heard.tokens == [100, 101, 102, 103, 104, 105]
        assert "a" not in fleet.grids


async def test_a_lost_grid_without_another_ends_its_requests() -> None:
    async with played() as (one, _):
        fleet = fleet_of(a=one)
        heard = await ask(fleet, asking("r", 6))
        await fleet.lost("a", one)
        last = await heard.end()
        assert (last.reason, last.retry_after_s) == ("error", 5.0)


class Away(FakeEngine):
    """Has been lost, and nobody has noticed."""

    async def adopt(self, submission: Any) -> None:
        raise UnavailableError("the engine is being rebuilt")


async def test_a_request_goes_on_in_the_grid_after_one_that_cannot() -> None:
    async with played() as (one, _), played() as (three, third):
        fleet = fleet_of(a=one)
        heard = await ask(fleet, asking("r", 2))
        fleet.join("b", Away(slowly, accept))
        fleet.join("c", three)
        await fleet.lost("a", one)
        await settled()
        request = heard.request
        third.say(
            [*[token(request, index, 7) for index in range(2)], finished(request, 2)]
        )
        await heard.end()
        heard.check_whole()


async def test_what_a_grid_that_has_to_go_is_not_done_with_goes_on_in_another() -> None:
    """And it is told to let go of that."""
    seat = Seat(RoutingConfig(), random.Random(0))
    first, second = (PlayedController(4096, accepting) for _ in range(2))
    controllers = {"one": first, "two": second}

    def opened(name: str, hear: Any) -> RayEngine:
        return RayEngine(lambda: controllers[name], patience_s=0.01)

    fleet = fleet_of()
    membership = Membership(fleet, seat, "e", 0.01, opened)
    seat.members({"1": Member("one", "e")})
    await membership.start()
    heard = await ask(fleet, asking("r", 4))
    request = heard.request
    first.say([token(request, index, 100 + index) for index in range(2)])
    await heard.until(2)
    seat.members({"2": Member("two", "e")})
    async with asyncio.timeout(5):
        while not second.requests:
            await settled()
    assert len(first.left) == 1
    (again,) = second.requests
    assert again.resumed is not None
    assert unpack_tokens(again.resumed.token_ids) == [100, 101]
    second.say(
        [
            *[token(request, index, 100 + index) for index in (2, 3)],
            finished(request, 4),
        ]
    )
    await heard.end()
    heard.check_whole()
    assert heard.tokens == [100, 101, 102, 103]
    await fleet.stop()


class Grid(FakeEngine):
    """Attached at once; lives as long as it is told to."""

    def __init__(self) -> None:
        super().__init__(slowly, accept)
        self.live = 0
        self.attached = True
        self.stopped = asyncio.Event()

    async def start(self) -> None:
        await asyncio.sleep(0)

    async def stop(self) -> None:
        self.stopped.set()


async def test_grids_come_and_go_as_serve_says() -> None:
    seat = Seat(RoutingConfig(), random.Random(0))
    fleet = fleet_of()
    made: dict[str, Grid] = {}

    def opened(controller: str, hear: Any) -> Grid:
        return made.setdefault(controller, Grid())

    membership = Membership(fleet, seat, "old", 60.0, opened)
    seat.members({"one": Member("controller-1", "old")})
    await membership.start()
    assert set(fleet.grids) == {"one"}
    one, two = (Member(f"controller-{number}", "old") for number in (1, 2))
    new = Member("controller-3", "new")  # of an update to another model
    # Serve's router runs in another thread
    await asyncio.to_thread(seat.members, {"one": one, "two": two, "three": new})
    await settled()
    assert set(fleet.grids) == {"one", "two"}
    assert "controller-3" not in made
    assert not seat.takes("three")
    made["controller-1"].live = 1
    await asyncio.to_thread(seat.members, {"two": two, "three": new})
    await settled()
    assert set(fleet.grids) == {"two"}
    assert not made["controller-1"].stopped.is_set()  # it drains
    made["controller-1"].live = 0
    async with asyncio.timeout(5):
        await made["controller-1"].stopped.wait()


def test_series_of_grids_are_told_apart_and_those_of_replicas_once() -> None:
    def families(value: float) -> list[Family]:
        return [
            Family("medha_backlog_seconds", "gauge", "help", {(): value}),
            Family("medha_replica_tasks", "gauge", "help", {(("replica", "r"),): 7.0}),
        ]

    backlog, tasks = merged({"a": families(1.0), "b": families(2.0)})
    assert backlog.values == {(("grid", "a"),): 1.0, (("grid", "b"),): 2.0}
    assert tasks.values == {(("replica", "r"),): 7.0}
