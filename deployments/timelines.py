"""Timelines for people without a tracing backend: Perfetto files and plain JSON.

GET /medha/timelines?last=N      the last N requests and what the stages did, for
                                 https://ui.perfetto.dev
GET /medha/trace/{id}            one request, by trace id, x-request-id, or the id in its answer
    ?format=perfetto | timeline  a Perfetto file (default), or the facts as they were recorded
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deployments import failures
from deployments.telemetry.perfetto import trace_of
from medha_actors.config import TelemetryConfig
from medha_actors.errors import MedhaError, NotFoundError, RequestError
from medha_actors.telemetry.reports import Reports
from medha_actors.telemetry.timelines import Timeline
from medha_actors.telemetry.traceparent import parse


class TimelineRoutes:
    """`reports`: the engine's."""

    def __init__(self, config: TelemetryConfig, reports: Reports) -> None:
        self._config = config
        self._reports = reports

    def routes(self) -> list[Route]:
        return [
            Route("/medha/timelines", _guarded(self.last), methods=["GET"]),
            Route("/medha/trace/{name:str}", _guarded(self.one), methods=["GET"]),
        ]

    async def last(self, request: Request) -> Response:
        """A Perfetto file of the recent past."""
        asked = request.query_params.get("last", str(self._config.timelines))
        if not asked.isdecimal() or len(asked) > 9:
            raise RequestError(
                f"last is {asked[:20]!r}, must be a number", param="last"
            )
        timelines, steps = await self._reports.last_timelines(int(asked))
        return _file(trace_of(timelines, steps), "medha-timelines.json")

    async def one(self, request: Request) -> Response:
        """One request's timeline."""
        name = request.path_params["name"]
        timelines = await self._reports.find_timelines(name)
        if not timelines:
            kept = f"the last {self._config.timelines} requests are kept"
            raise NotFoundError(
                f"no timeline of {name[:100]!r}; {kept}", code="no_such_trace"
            )
        if request.query_params.get("format") != "timeline":
            return _file(
                trace_of(timelines), f"medha-trace-{timelines[0].id[-40:]}.json"
            )
        facts = [self._facts(timeline) for timeline in timelines]
        return Response(
            msgspec.json.encode({"timelines": facts}), media_type="application/json"
        )

    def _facts(self, timeline: Timeline) -> dict[str, Any]:
        """The timeline with what follows from it."""
        span = parse(timeline.traceparent)
        template = self._config.tracing.ui_url
        facts: dict[str, Any] = msgspec.to_builtins(timeline)
        facts["trace_id"] = span.trace if span else None
        facts["ui_url"] = (
            template.replace("{trace_id}", span.trace) if span and template else None
        )
        facts["ttft_s"] = timeline.ttft_s
        facts["tpot_s"] = timeline.tpot_s
        facts["missed"] = list(timeline.missed())
        return facts


def _file(content: dict[str, Any], name: str) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(
        msgspec.json.encode(content), media_type="application/json", headers=headers
    )


def _guarded(
    handler: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except MedhaError as error:
            return failures.response(error)

    return guarded
