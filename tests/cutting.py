"""A TCP proxy that cuts connections after given numbers of bytes of the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


class CuttingProxy:
    """The first connections are cut after `cuts` bytes, one number each; later ones are whole."""

    def __init__(
        self, url: str, cuts: Iterable[int] = (), *, reset: bool = False
    ) -> None:
        """`reset`: the connection ends as when a process or a network dies, not in order."""
        parts = urlsplit(url)
        self._host = parts.hostname
        self._port = parts.port
        self._cuts = list(cuts)
        self._reset = reset
        self._listener: asyncio.Server | None = None
        self._listening_port = 0
        self._serving: set[asyncio.Task[None]] = set()
        self.connections = 0
        self.on_cut = lambda: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listening_port}"

    async def listen(self) -> None:
        self._listener = await asyncio.start_server(
            self._serve, "127.0.0.1", self._listening_port
        )
        self._listening_port = self._listener.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Nobody listens any more."""
        assert self._listener is not None
        self._listener.close()

    async def close(self) -> None:
        """Nobody listens, and nothing is under way."""
        self.refuse()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One connection, until it is cut or one of its ends has gone."""
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        self.connections += 1
        left = self._cuts.pop(0) if self._cuts else None
        from_server, to_server = await asyncio.open_connection(self._host, self._port)
        ways = [
            asyncio.ensure_future(_forward(reader, to_server)),
            asyncio.ensure_future(self._answer(from_server, writer, left)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            to_server.transport.abort()
            if self._reset:
                writer.transport.abort()
            writer.close()
        await asyncio.gather(*ways, return_exceptions=True)

    async def _answer(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        left: int | None,
    ) -> None:
        while data := await reader.read(2**16):
            writer.write(data if left is None else data[:left])
            await writer.drain()
            if left is None:
                continue
            left -= len(data)
            if left <= 0:
                self.on_cut()
                return


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def cutting(
    url: str, cuts: Iterable[int] = (), *, reset: bool = False
) -> AsyncIterator[CuttingProxy]:
    proxy = CuttingProxy(url, cuts, reset=reset)
    await proxy.listen()
    try:
        yield proxy
    finally:
        await proxy.close()
