"""The scripted engine keeps the contract that the real one keeps (test_engine_actors.py)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from medha_actors.messages import Accepted, Event, Rejected, Request
from tests.engine_contract import CHECKS
from tests.fakes import FakeEngine, accept, finished, token


async def slowly(request: Request) -> AsyncIterator[Event]:
    tokens = request.sampling.max_tokens
    for index in range(tokens):
        await asyncio.sleep(0)
        yield token(request, index, index % 251)
    yield finished(request, tokens)


def bounded(request: Request) -> Accepted | Rejected:
    if request.prompt_tokens <= 4096:
        return accept(request)
    return Rejected(status=400, kind="invalid_request_error", message="too long")


@pytest.mark.parametrize("check", CHECKS)
async def test_the_contract(check: Any) -> None:
    await check(FakeEngine(slowly, bounded))
