"""What every EngineHandle promises about records, be the engine scripted or real."""

from __future__ import annotations

import msgspec

from deployments.handle import EngineHandle
from medha_actors.messages import (
    Accepted,
    FinishedEvent,
    Record,
    Request,
    Resumed,
    TokenEvent,
    unpack_tokens,
)


async def tokens_of(engine: EngineHandle, request: Request, stop_at: int = -1) -> list[int]:
    """The tokens of a request; with `stop_at`, its client goes away after so many of them."""
    events, tokens = engine.events(request.id), []
    assert isinstance(await engine.submit(request), Accepted)
    async for event in events:
        if isinstance(event, TokenEvent):
            tokens.append(event.token_id)
        if len(tokens) == stop_at:
            await engine.cancel(request.id)
            break
    return tokens


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


async def check_resuming(engine: EngineHandle, request: Request) -> None:
    """`request` generates at least eight tokens and ends by itself."""
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
    await tokens_of(engine, cut, stop_at=3)
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


async def _check_an_older_stream(engine: EngineHandle, older: Request, expected: list[int]) -> None:
    """It ends when another request goes on with its answer."""
    events = engine.events(older.id)
    await engine.submit(older)
    record = await record_of(engine, older)
    known = unpack_tokens(record.token_ids)
    rest = await tokens_of(engine, going_on(record, f"{older.id}-newer"))
    assert known + rest == expected
    last = [event async for event in events][-1]
    assert isinstance(last, FinishedEvent)
    assert last.reason == "abort"
