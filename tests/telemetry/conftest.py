"""Servers for the tests of what they tell of themselves."""

import contextlib

import pytest
from observed import World


@pytest.fixture
async def make():
    async with contextlib.AsyncExitStack() as stack:

        def build(*args, **options) -> World:
            world = World(*args, **options)
            stack.push_async_callback(world.http.aclose)
            return world

        yield build
