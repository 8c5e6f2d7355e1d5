"""From a herald to routers: with each ingress replica's events, whole to those who come new."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import msgspec
from core_inputs import config_of, grid_of, request_of
from msgspec.structs import replace

from medha_actors.actors.announcer import Announcer
from medha_actors.actors.engine import RayEngine
from medha_actors.actors.sinks import Sinks
from medha_actors.bench.played import PlayedController
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.scheduler import Scheduler
from medha_actors.fleet.notices import Notice
from medha_actors.fleet.views import GridView
from medha_actors.messages import DrainingEvent, Event, TokenEvent

decode = msgspec.msgpack.Decoder(list[Event | DrainingEvent | Notice]).decode


def announcer_of(sinks):
    config = config_of()
    scheduler = Scheduler(
        config.scheduler,
        config.objectives,
        config.cache_name,
        grid_of(pages=500),
        ExecutionModel.analytic(1),
    )
    return Announcer(config, scheduler, sinks, lambda: 1.0), scheduler


async def next_of(stream):
    async with asyncio.timeout(5):
        return decode(await anext(stream))


async def test_a_newcomer_hears_all_pages_and_then_what_changes():
    sinks = Sinks()
    announcer, scheduler = announcer_of(sinks)
    async with aclosing(sinks.listen("early")) as early:
        waiting = asyncio.ensure_future(next_of(early))
        await asyncio.sleep(0)
        announcer.announce()
        (first,) = await waiting
        assert first.whole
        assert first.serial == 0
        scheduler.add(request_of("r", 40), 1.0)
        announcer.announce()
        (second,) = await next_of(early)
        assert (second.whole, second.serial, second.live) == (False, 1, 1)
        async with aclosing(sinks.listen("late")) as late:
            waiting = asyncio.ensure_future(next_of(late))
            await asyncio.sleep(0)
            announcer.announce()
            (whole,) = await waiting
            (third,) = await next_of(early)
            assert (whole.whole, third.whole) == (True, False)
            assert whole.serial == third.serial == 2
            announcer.drain()
            (last,) = await next_of(late)
            assert (last.draining, last.whole, last.serial) == (True, False, 3)
    assert announcer.last.draining


async def test_who_does_not_read_is_not_buried_and_hears_the_whole_later():
    sinks = Sinks()
    announcer, _ = announcer_of(sinks)
    sinks.own("r", "slow")
    view = GridView("grid")
    stream = sinks.listen("slow")
    announcer.announce()
    sinks.put([TokenEvent("r", index, 1, 0.0) for index in range(10_000)])
    for _ in range(50):
        announcer.announce()
    events = await next_of(stream)
    notices = [event for event in events if isinstance(event, Notice)]
    assert len(notices) == 1
    assert view.heard(notices[0], 0.0)
    announcer.announce()
    (again,) = await next_of(stream)
    assert again.whole
    assert view.heard(again, 0.1)
    await stream.aclose()


async def test_an_engine_tells_of_its_grid():
    controller = PlayedController(4096)
    heard = []
    engine = RayEngine(lambda: controller, hear=heard.append)
    await engine.start()
    announcer, _ = announcer_of(Sinks())
    announcer.announce()
    notice = replace(announcer.last, whole=True)
    controller.say([notice])
    await controller.heard()
    assert heard == [notice]
    await engine.stop()
    deaf = RayEngine(lambda: controller)  # one grid alone: nobody wants to know
    await deaf.start()
    controller.say([notice])
    await controller.heard()
    deaf.check_health()
    await deaf.stop()
