"""Observatory: what an ingress replica tells of its requests and lets people see of the engine.

It wraps the generating routes from outside (one record per HTTP request), and serves /metrics,
/medha and timelines. With `telemetry.enabled: false` there is none, and the routes stay as they
are.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.gate import key_of
from deployments.live_page import LivePage
from deployments.metrics import CONTENT_TYPE, ReplicaFigures, page
from deployments.telemetry.http_record import HttpRecord
from deployments.timelines import TimelineRoutes
from deployments.tracing import Tracing
from medha_actors.config import MedhaConfig
from medha_actors.errors import MedhaError
from medha_actors.telemetry.reports import Reports
from medha_actors.telemetry.traceparent import TraceParent, begin, parse

_log = logging.getLogger("medha.telemetry")
_REPORT_DELAY_S = 1.0


class Observatory:
    """One per replica. `reports`: the engine's; `replica` names this process in labels."""

    def __init__(self, config: MedhaConfig, reports: Reports, replica: str) -> None:
        self.config = config
        self.replica = replica
        self.figures = ReplicaFigures(replica)
        self.tracing = Tracing(config.telemetry, reports, replica)
        self.live = LivePage(config.telemetry, reports)
        self._reports = reports
        self._timelines = TimelineRoutes(config.telemetry, reports)
        self._report: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def routes(self) -> list[Route]:
        """To be added to the server's."""
        routes = [
            Route("/metrics", self.metrics, methods=["GET"]),
            *self._timelines.routes(),
        ]
        return routes + (self.live.routes() if self.config.telemetry.live_page else [])

    def wrap(self, app: ASGIApp, route: str) -> ASGIApp:
        """The same application, observed."""
        return _Observed(self, app, route)

    async def observe(
        self, app: ASGIApp, route: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Run one request and keep its record."""
        header = next(
            (value for name, value in scope["headers"] if name == b"traceparent"), b""
        )
        parent = self.tracing.parent(parse(header.decode("latin-1")))
        record = HttpRecord(
            scope["method"],
            route,
            parent,
            begin(parent, self.config.telemetry.tracing.sample_ratio),
        )
        record.key = key_of(scope)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                headers["x-medha-trace-id"] = record.span.trace
                headers["traceresponse"] = str(record.span)
            await send(message)

        self.figures.open += 1
        try:
            await app(
                {**scope, "headers": _with_parent(scope, record.span), "medha": record},
                receive,
                watched,
            )
        finally:
            self.figures.open -= 1
            record.ended_at = time.time()
            self._ended(record)

    async def close(self) -> None:
        """The replica ends."""
        await self.tracing.close()

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        engine_up = True
        try:
            await self._tell()
            families = await self._reports.metrics()
        except MedhaError:
            families = self.figures.families()
            engine_up = False
        text = page(families, self.config.model_loading_config.model_id, engine_up)
        return Response(text, media_type=CONTENT_TYPE)

    def _ended(self, record: HttpRecord) -> None:
        self.figures.ended(
            record.route, record.status, record.ended_at - record.arrived_at
        )
        if record.admitted_at is not None and record.body_at is not None:
            self.figures.tokenized(record.admitted_at - record.body_at)
        self.tracing.ended(record)
        if self._report is None:
            self._report = asyncio.get_running_loop().call_later(
                _REPORT_DELAY_S, self._send_report
            )

    def _send_report(self) -> None:
        self._report = None
        task = asyncio.ensure_future(self._tell())
        self._tasks.add(task)
        task.add_done_callback(self._told)

    def _told(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # the engine is away: it is told at the next change

    async def _tell(self) -> None:
        self.figures.spans_sent, self.figures.spans_lost = self.tracing.spans()
        self.figures.tasks = len(asyncio.all_tasks())
        await self._reports.report(self.replica, self.figures.families())


class _Observed:
    """An ASGI application that is observed (Starlette takes plain functions for something else)."""

    def __init__(self, observatory: Observatory, app: ASGIApp, route: str) -> None:
        self._observatory = observatory
        self._app = app
        self._route = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._observatory.observe(self._app, self._route, scope, receive, send)


def _with_parent(scope: Scope, span: TraceParent) -> list[tuple[bytes, bytes]]:
    """The request's headers with our own span as the parent of what follows."""
    others = [
        (name, value) for name, value in scope["headers"] if name != b"traceparent"
    ]
    return [*others, (b"traceparent", str(span).encode())]
