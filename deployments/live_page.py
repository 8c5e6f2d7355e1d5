"""The live page: GET /medha is one static file, GET /medha/live its feed of server-sent events.

A replica asks the controller for a snapshot every `live_period_s` while at least one person looks,
whatever their number; when nobody does, nothing runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from deployments import failures, sse
from medha_actors.config import TelemetryConfig
from medha_actors.errors import MedhaError, OverloadedError
from medha_actors.telemetry.reports import Reports

_PAGE = Path(__file__).parent / "static" / "medha.html"
_MAX_VIEWERS = 32
TASK = "live page"  # the name of the task that runs while somebody looks
_QUEUE = 8  # snapshots a slow viewer may be behind; it skips the others


class LivePage:
    """`reports`: the engine's."""

    def __init__(self, config: TelemetryConfig, reports: Reports) -> None:
        self._period_s = config.live_period_s
        self._reports = reports
        self._viewers: set[asyncio.Queue[bytes]] = set()
        self._task: asyncio.Task[None] | None = None

    def routes(self) -> list[Route]:
        return [
            Route("/medha", self.page, methods=["GET"]),
            Route("/medha/live", self.feed, methods=["GET"]),
        ]

    async def page(self, request: Request) -> Response:
        return FileResponse(_PAGE, media_type="text/html", headers={"cache-control": "no-cache"})

    async def feed(self, request: Request) -> Response:
        if len(self._viewers) >= _MAX_VIEWERS:
            return failures.response(
                OverloadedError(f"{_MAX_VIEWERS} people look already", retry_after_s=10)
            )
        return StreamingResponse(self._frames(), headers=sse.HEADERS)

    async def _frames(self) -> AsyncIterator[bytes]:
        mailbox: asyncio.Queue[bytes] = asyncio.Queue(_QUEUE)
        self._viewers.add(mailbox)
        if self._task is None:
            self._task = asyncio.create_task(self._poll(), name=TASK)
        try:
            yield sse.comment("live")
            while True:
                yield await mailbox.get()
        finally:
            self._viewers.discard(mailbox)
            if not self._viewers and self._task is not None:
                self._task.cancel()
                self._task = None

    async def _poll(self) -> None:
        seq = 0
        while True:
            try:
                snapshot = await self._reports.snapshot(seq)
                seq = snapshot.seq
                frame = sse.data(snapshot)
            except MedhaError as error:
                seq = 0
                frame = sse.data({"error": error.message})
            for mailbox in self._viewers:
                if not mailbox.full():
                    mailbox.put_nowait(frame)
            await asyncio.sleep(self._period_s)
