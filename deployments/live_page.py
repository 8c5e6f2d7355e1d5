"""The live page: GET /medha is one static file, GET /medha/live its feed of server-sent events.

A replica asks the controller for a snapshot every `live_period_s` while at least one person looks,
whatever their number; when nobody does, nothing runs. Of a fleet, one grid is drawn, and all have a
row.
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
_MOST_CHARS = 256  # of a grid's name
TASK = "live page"  # the name of the task that runs while somebody looks
_QUEUE = 8  # snapshots a slow viewer may be behind; it skips the others


class LivePage:
    """`reports`: the engine's."""

    def __init__(self, config: TelemetryConfig, reports: Reports) -> None:
        self._period_s = config.live_period_s
        self._reports = reports
        self._feeds: dict[str, _Feed] = {}  # by the grid that is looked at

    def routes(self) -> list[Route]:
        return [
            Route("/medha", self.page, methods=["GET"]),
            Route("/medha/live", self.feed, methods=["GET"]),
        ]

    async def page(self, request: Request) -> Response:
        return FileResponse(
            _PAGE, media_type="text/html", headers={"cache-control": "no-cache"}
        )

    async def feed(self, request: Request) -> Response:
        """`?grid=`: of several, which is drawn."""
        if sum([len(feed.viewers) for feed in self._feeds.values()]) >= _MAX_VIEWERS:
            return failures.response(
                OverloadedError(f"{_MAX_VIEWERS} people look already", retry_after_s=10)
            )
        grid = request.query_params.get("grid", "")[:_MOST_CHARS]
        return StreamingResponse(self._frames(grid), headers=sse.HEADERS)

    async def _frames(self, grid: str) -> AsyncIterator[bytes]:
        feed = self._feeds.setdefault(grid, _Feed(grid, self._reports, self._period_s))
        mailbox: asyncio.Queue[bytes] = asyncio.Queue(_QUEUE)
        feed.join(mailbox)
        try:
            yield sse.comment("live")
            while True:
                yield await mailbox.get()
        finally:
            feed.leave(mailbox)
            if not feed.viewers:
                self._feeds.pop(grid, None)


class _Feed:
    """For those who look at the same grid."""

    def __init__(self, grid: str, reports: Reports, period_s: float) -> None:
        self.viewers: set[asyncio.Queue[bytes]] = set()
        self._grid = grid
        self._reports = reports
        self._period_s = period_s
        self._task: asyncio.Task[None] | None = None

    def join(self, mailbox: asyncio.Queue[bytes]) -> None:
        self.viewers.add(mailbox)
        if self._task is None:
            self._task = asyncio.create_task(self._poll(), name=TASK)

    def leave(self, mailbox: asyncio.Queue[bytes]) -> None:
        self.viewers.discard(mailbox)
        if not self.viewers and self._task is not None:
            self._task.cancel()
            self._task = None

    async def _poll(self) -> None:
        seq = 0
        grid = self._grid
        while True:
            try:
                snapshot = await self._reports.snapshot(seq, grid)
                seq = snapshot.seq
                grid = snapshot.grid  # the same again, however others come and go
                frame = sse.data(snapshot)
            except MedhaError as error:
                seq = 0
                frame = sse.data({"error": error.message})
            for mailbox in self.viewers:
                if not mailbox.full():
                    mailbox.put_nowait(frame)
            await asyncio.sleep(self._period_s)
