"""A real HTTP server on a free port, with a scripted engine behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
import uvicorn
import uvicorn.server

from deployments.server import Server
from deployments.text import Text
from deployments.text_sources import toy_text
from medha_actors.config import MedhaConfig, ModelLoadingConfig, StreamConfig
from tests.fakes import FakeEngine, Script, saying

MODEL = ModelLoadingConfig(
    model_id="toy", model_source="random", max_model_len_tokens=4096
)
EOS = 256


@dataclass
class Service:
    """A running server, its engine, and an HTTP client for it."""

    engine: FakeEngine
    http: httpx.AsyncClient
    url: str
    server: Server

    async def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return await self.http.post(path, json=body, **options)


@asynccontextmanager
async def listening(app: Any) -> AsyncIterator[str]:
    """The URL of an ASGI application on a free port; uvicorn's protocol without its server loop,
    which sleeps."""
    config = uvicorn.Config(app, log_level="error", lifespan="off", ws="none")
    config.load()
    state = uvicorn.server.ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: config.http_protocol_class(config, state, {}), "127.0.0.1", 0
    )
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
        if state.tasks:
            await asyncio.wait(set(state.tasks), timeout=5.0)


@pytest.fixture(scope="session")
def toy() -> Text:
    return toy_text(512, 4096)


Start = Callable[..., Any]


@asynccontextmanager
async def openai_clients(start: Start, max_retries: int) -> AsyncIterator[Start]:
    """The same as `start`, and OpenAI's own client of each: (client, service)."""
    async with AsyncExitStack() as stack:

        async def begin(
            *script: Any, **options: Any
        ) -> tuple[openai.AsyncOpenAI, Service]:
            service = await start(*script, **options)
            client = openai.AsyncOpenAI(
                base_url=f"{service.url}/v1", api_key="none", max_retries=max_retries
            )
            return await stack.enter_async_context(client), service

        yield begin


@pytest.fixture
async def start(toy: Text) -> AsyncIterator[Start]:
    """`await start(script, **sections)`: a Service whose engine plays the script."""
    async with AsyncExitStack() as stack:

        async def begin(
            script: Script | None = None, answer: Any = None, **sections: Any
        ) -> Service:
            engine = FakeEngine(script or saying(b"Hello world", EOS), answer)
            sections.setdefault("stream", StreamConfig(keep_alive_s=30.0))
            server = Server(
                MedhaConfig(model_loading_config=MODEL, **sections), engine, toy
            )
            url = await stack.enter_async_context(listening(server.asgi()))
            http = await stack.enter_async_context(
                httpx.AsyncClient(base_url=url, timeout=20.0)
            )
            return Service(engine, http, url, server)

        yield begin
