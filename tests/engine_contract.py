"""What every EngineHandle promises, be the engine scripted or real.

`CHECKS` take an engine that generates `max_tokens` tokens for each request, some at a time, and
refuses a prompt of 200,000. The last ones end it: put no check behind them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import msgspec

from deployments.handle import EngineHandle
from medha_actors.actors.local import prompt_of
from medha_actors.errors import RequestError
from medha_actors.messages import (
    Accepted,
    Event,
    FinishedEvent,
    Rejected,
    Request,
    Resumed,
    SamplingParams,
    TokenEvent,
    pack_tokens,
    unpack_tokens,
)
from medha_actors.record import Record

ENDLESS: Final = 90_000  # tokens: more than any check waits for


class Engine(EngineHandle, Protocol):
    """A handle, and its own end."""

    async def drain(self, timeout_s: float) -> int: ...

    async def stop(self) -> None: ...


class Heard:
    """One request and all that its receiver was told."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.answer: Accepted | Rejected | None = None
        self.events: list[Event] = []
        self.too_early = False
        self._news = asyncio.Event()

    def receive(self, event: Event) -> None:
        self.too_early = self.too_early or self.answer is None
        self.events.append(event)
        self._news.set()

    @property
    def tokens(self) -> list[int]:
        return [
            event.token_id for event in self.events if isinstance(event, TokenEvent)
        ]

    @property
    def last(self) -> FinishedEvent:
        assert isinstance(self.events[-1], FinishedEvent)
        return self.events[-1]

    async def until(self, tokens: int) -> None:
        """So many tokens are there, or it has ended."""
        while len(self.tokens) < tokens and not self._has_ended():
            self._news.clear()
            await self._news.wait()

    async def end(self) -> FinishedEvent:
        await self.until(2 * ENDLESS)
        return self.last

    def _has_ended(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], FinishedEvent)

    def check_whole(self) -> None:
        """Everything was told once, in order, and the end last."""
        assert not self.too_early
        assert {event.request_id for event in self.events} == {self.request.id}
        indexes = [
            event.index for event in self.events if isinstance(event, TokenEvent)
        ]
        assert indexes == list(range(self.request.sampling.max_tokens))
        endings = [event for event in self.events if isinstance(event, FinishedEvent)]
        assert endings == [self.last]
        assert self.last.reason == "length"


class Broken(Heard):
    """Its receiver fails at the third token."""

    def __init__(self, request: Request, error: Exception) -> None:
        super().__init__(request)
        self._error = error

    def receive(self, event: Event) -> None:
        super().receive(event)
        if len(self.tokens) == 3:
            raise self._error


def asking(name: str, tokens: int, prompt: int = 40) -> Request:
    return Request(
        id=name,
        prompt_token_ids=pack_tokens(prompt_of(prompt)),
        sampling=SamplingParams(max_tokens=tokens, temperature=0.0, seed=5),
    )


async def submitted(engine: EngineHandle, heard: Heard) -> Heard:
    heard.answer = await engine.submit(heard.request, heard.receive)
    return heard


async def ask(engine: EngineHandle, request: Request) -> Heard:
    """Submits a request that is taken."""
    heard = await submitted(engine, Heard(request))
    assert isinstance(heard.answer, Accepted)
    return heard


async def check_a_neighbour(engine: EngineHandle, name: str) -> None:
    """The engine still serves."""
    neighbour = await ask(engine, asking(name, 20))
    await neighbour.end()
    neighbour.check_whole()


# ---------------------------------------------------------------- what is told


async def check_order(engine: Engine) -> None:
    """Every event once, in order, to its own receiver, and not before the answer is known."""
    assert engine.ready()
    requests = [
        asking(f"order-{tokens}", tokens, prompt=tokens) for tokens in (1, 50, 300)
    ]
    together = await asyncio.gather(*[ask(engine, request) for request in requests])
    for heard in together:
        await heard.end()
    for heard in together:
        heard.check_whole()


async def check_cancelling(engine: Engine) -> None:
    """Who is cancelled hears nothing more."""
    begun = await ask(engine, asking("cancelled", ENDLESS))
    await begun.until(3)
    at_once = await ask(engine, asking("cancelled-at-once", ENDLESS))
    await engine.cancel(begun.request.id)
    await engine.cancel(at_once.request.id)
    told = len(begun.events)
    await check_a_neighbour(engine, "beside-cancelled")
    assert len(begun.events) == told
    assert at_once.events == []


async def check_harmless_cancels(engine: Engine) -> None:
    """Unknown requests, finished ones, and a second time."""
    finished = await ask(engine, asking("finished", 3))
    await finished.end()
    running = await ask(engine, asking("running", 30))
    for name in ("unknown", "finished", "finished"):
        await engine.cancel(name)
    await running.end()
    finished.check_whole()
    running.check_whole()


async def check_refusals(engine: Engine) -> None:
    """Who is refused hears nothing, and can be cancelled."""
    refused = await submitted(engine, Heard(asking("refused", 1, prompt=200_000)))
    assert isinstance(refused.answer, Rejected)
    assert refused.answer.status == 400
    await engine.cancel("refused")
    await check_a_neighbour(engine, "beside-refused")
    assert refused.events == []


async def check_broken_receivers(engine: Engine) -> None:
    """A receiver that raises ends its own request and nobody else's."""
    beside = await ask(engine, asking("beside-broken", 300))
    for error in (ZeroDivisionError("unforeseen"), RequestError("no")):
        broken = Broken(asking(f"broken-{type(error).__name__}", ENDLESS), error)
        await submitted(engine, broken)
        await broken.until(3)
        await check_a_neighbour(engine, f"after-{type(error).__name__}")
        assert len(broken.tokens) == 3
        assert isinstance(broken.events[-1], TokenEvent)
    await beside.end()
    beside.check_whole()


# ---------------------------------------------------------------- answers that are resumed


async def check_resuming(engine: Engine) -> None:
    for temperature in (0.0, 1.0):
        request = asking(f"resumed-{temperature:g}", 300)
        sampling = msgspec.structs.replace(request.sampling, temperature=temperature)
        await _check_resuming(
            engine, msgspec.structs.replace(request, sampling=sampling)
        )


async def _check_resuming(engine: EngineHandle, request: Request) -> None:
    whole = named(request, "whole")
    expected = await tokens_of(engine, whole)
    record = await record_of(engine, whole)
    assert unpack_tokens(record.token_ids) == expected
    assert record.finished is not None
    assert record.finished.generated_tokens == len(expected)
    assert await engine.record("unknown") is None
    await _check_a_client_that_comes_back(engine, named(request, "cut"), expected)
    await _check_an_older_stream(engine, named(request, "twice"), expected)


async def _check_a_client_that_comes_back(
    engine: EngineHandle, cut: Request, expected: list[int]
) -> None:
    begun = await ask(engine, cut)
    await begun.until(3)
    await engine.cancel(cut.id)
    record = await record_of(engine, cut)
    known = unpack_tokens(record.token_ids)
    assert known == expected[: len(known)]
    assert len(known) >= 3
    if record.finished is None:
        rest = await tokens_of(engine, going_on(record, f"{cut.id}-again"))
        assert known + rest == expected
    record = await record_of(engine, cut)
    assert unpack_tokens(record.token_ids) == expected
    assert isinstance(record.finished, FinishedEvent)


async def _check_an_older_stream(
    engine: EngineHandle, older: Request, expected: list[int]
) -> None:
    """It ends when another request goes on with its answer."""
    heard = await ask(engine, older)
    record = await record_of(engine, older)
    known = unpack_tokens(record.token_ids)
    rest = await tokens_of(engine, going_on(record, f"{older.id}-newer"))
    assert known + rest == expected
    assert (await heard.end()).reason == "abort"


async def tokens_of(engine: EngineHandle, request: Request) -> list[int]:
    heard = await ask(engine, request)
    await heard.end()
    return heard.tokens


async def record_of(engine: EngineHandle, request: Request) -> Record:
    assert request.answer_id is not None
    record = await engine.record(request.answer_id)
    assert record is not None
    return record


def going_on(record: Record, name: str) -> Request:
    """The request that goes on with an answer."""
    known = Resumed(token_ids=record.token_ids, first_token_at=record.first_token_at)
    return msgspec.structs.replace(record.request, id=name, resumed=known)


def named(request: Request, name: str) -> Request:
    answer_id = f"{request.id}-{name}"
    return msgspec.structs.replace(request, id=f"{answer_id}-r", answer_id=answer_id)


# ---------------------------------------------------------------- ends


async def check_stopping(engine: Engine) -> None:
    """Nobody is left waiting."""
    heard = [
        await ask(engine, asking(f"stopped-{number}", ENDLESS)) for number in range(2)
    ]
    for one in heard:
        await one.until(3)
    await engine.stop()
    assert not engine.ready()
    for one in heard:
        last = await one.end()
        assert (last.reason, last.message) == (
            "error",
            "the engine dropped the request",
        )
        assert last.retry_after_s is not None


async def check_draining(engine: Engine) -> None:
    """What can finish does; the rest ends with an error that invites to try again."""
    long = await ask(engine, asking("long", ENDLESS))
    short = await ask(engine, asking("short", 50))
    await short.until(1)
    drained = asyncio.create_task(engine.drain(3.0))
    await short.end()
    short.check_whole()
    assert not engine.ready()
    refused = await submitted(engine, Heard(asking("late", 1)))
    assert isinstance(refused.answer, Rejected)
    assert (refused.answer.status, refused.answer.retry_after_s) == (503, 5.0)
    # What another controller had accepted, before it was lost, is let in.
    known = Resumed(token_ids=pack_tokens([7, 8]))
    resumed = await ask(
        engine, msgspec.structs.replace(asking("known", 4), resumed=known)
    )
    assert (await resumed.end()).reason == "length"
    unfinished = await long.end()
    assert (unfinished.reason, unfinished.retry_after_s) == ("error", 5.0)
    assert await drained == 1


CHECKS: Final[tuple[Callable[[Engine], Awaitable[None]], ...]] = (
    check_order,
    check_cancelling,
    check_harmless_cancels,
    check_refusals,
    check_broken_receivers,
    check_resuming,
    check_stopping,
    check_draining,
)
