"""From the controller's messages to receivers: the real RayEngine, a controller that is played."""

from __future__ import annotations

import asyncio

import pytest

from medha_actors.actors.engine import RayEngine
from medha_actors.bench.played import accepting
from medha_actors.errors import EngineError
from medha_actors.messages import Accepted, Event, FinishedEvent, Rejected, Request
from tests.engine_contract import Heard, ask, asking, submitted
from tests.fakes import finished, token
from tests.played import played


def said(request: Request) -> list[Event]:
    """All events of a request."""
    tokens = request.sampling.max_tokens
    return [
        *[token(request, index, 65) for index in range(tokens)],
        finished(request, tokens),
    ]


class Hesitant:
    """Answers when it is let go."""

    def __init__(self, answer: Accepted | Rejected) -> None:
        self.asked = asyncio.Event()
        self.go = asyncio.Event()
        self._answer = answer

    async def __call__(self, request: Request) -> Accepted | Rejected:
        self.asked.set()
        await self.go.wait()
        return self._answer


async def overtaken(answer: Accepted | Rejected) -> Heard:
    """A request all of whose events come before its answer, and those of one that nobody sent."""
    hesitant = Hesitant(answer)
    async with played(hesitant) as (engine, controller):
        heard = Heard(asking("early", 5))
        submitting = asyncio.create_task(_submit_and_listen(engine, heard))
        await hesitant.asked.wait()
        controller.say(said(heard.request))
        controller.say([finished(asking("unknown", 0), 0)])
        await controller.heard()
        assert heard.events == []
        hesitant.go.set()
        await submitting
    return heard


async def _submit_and_listen(engine: RayEngine, heard: Heard) -> None:
    await submitted(engine, heard)
    if isinstance(heard.answer, Accepted):
        await heard.end()


async def test_what_comes_before_the_answer_is_told_after_it() -> None:
    heard = await overtaken(await accepting(asking("any", 1)))
    heard.check_whole()


async def test_what_comes_before_a_refusal_is_not_told() -> None:
    heard = await overtaken(
        Rejected(status=429, kind="rate_limit_error", message="full")
    )
    assert isinstance(heard.answer, Rejected)
    assert heard.events == []


async def test_a_cancel_before_the_first_turn_silences_what_has_come_already() -> None:
    hesitant = Hesitant(await accepting(asking("any", 1)))
    async with played(hesitant) as (engine, controller):
        heard = Heard(asking("early", 5))
        submitting = asyncio.create_task(_submit_and_cancel(engine, heard))
        await hesitant.asked.wait()
        controller.say(said(heard.request)[:-1])
        await controller.heard()
        hesitant.go.set()
        await submitting
        assert controller.cancelled == ["early"]
        await engine.stop()
        assert heard.events == []


async def _submit_and_cancel(engine: RayEngine, heard: Heard) -> None:
    await submitted(engine, heard)
    await engine.cancel(heard.request.id)


async def test_who_goes_away_while_submitting_leaves_nothing_in_the_engine() -> None:
    hesitant = Hesitant(await accepting(asking("any", 1)))
    async with played(hesitant) as (engine, controller):
        submitting = asyncio.create_task(ask(engine, asking("gone", 5)))
        await hesitant.asked.wait()
        submitting.cancel()
        await asyncio.wait([submitting])
        assert controller.cancelled == ["gone"]


async def test_a_long_message_leaves_turns_to_others() -> None:
    async with played() as (engine, controller):
        heard = await ask(engine, asking("burst", 2000))
        controller.say(said(heard.request))
        most = 0
        while not heard.events or not isinstance(heard.events[-1], FinishedEvent):
            before = len(heard.events)
            await asyncio.sleep(0)
            most = max(most, len(heard.events) - before)
        assert most <= 128
        heard.check_whole()


async def test_a_message_that_cannot_be_read_ends_all_and_the_replica() -> None:
    async with played() as (engine, controller):
        heard = await ask(engine, asking("dropped", 5))
        controller.say(said(heard.request)[:2])
        await heard.until(2)
        engine.check_health()
        controller.say_packed(b"nonsense")
        last = await heard.end()
        assert (last.reason, last.message) == (
            "error",
            "the engine dropped the request",
        )
        assert not engine.ready()
        with pytest.raises(EngineError):
            engine.check_health()
