"""A real server with a scripted engine, and what its telemetry would have sent."""

import asyncio

import httpx
from local import LocalController
from stories import accepted

from deployments import live_page
from deployments.observatory import Observatory
from deployments.server import Server
from deployments.text_sources import toy_text
from medha_actors.config import (
    ApiKeysConfig,
    MedhaConfig,
    ModelLoadingConfig,
    TelemetryConfig,
    TracingConfig,
)
from medha_actors.errors import UnavailableError
from medha_actors.messages import FinishedEvent, TokenEvent
from tests.fakes import FakeEngine, saying

MODEL = ModelLoadingConfig(
    model_id="toy", model_source="random", max_model_len_tokens=4096
)
SPAN = "b7ad6b7169203331"


class Export:
    """Takes what the exporter's thread would get."""

    def __init__(self) -> None:
        self.offered: list = []
        self.closed = False
        self.changed = asyncio.Event()

    def offer(self, edges, timelines) -> None:
        self.offered.append((edges, timelines))
        self.changed.set()

    def spans(self) -> tuple[int, int]:
        return 7, 1

    def close(self) -> None:
        self.closed = True


class Reachable:
    """The world's controller, while it is up (medha_actors.telemetry.reports.Reports)."""

    def __init__(self, world):
        self._world = world

    def __getattr__(self, method):
        if self._world.down:
            raise UnavailableError("the engine is being rebuilt", retry_after_s=5)
        return getattr(self._world.controller, method)


class World:
    """A real server with a scripted engine, whose requests a local controller's recorder is told
    of."""

    def __init__(
        self,
        answer=None,
        tracing: TracingConfig | None = None,
        api_keys: ApiKeysConfig | None = None,
        **telemetry,
    ) -> None:
        self.controller = LocalController()
        script = saying(b"hello")

        async def told(request):
            recorder = self.controller.observer.recorder
            recorder.accepted(
                request, accepted(request, tpot_s=2.0), request.arrived_at
            )
            async for event in script(request):
                if isinstance(event, TokenEvent | FinishedEvent):
                    recorder.happened(event)
                yield event

        self.engine = FakeEngine(told, answer)
        self.down = False
        section = TelemetryConfig(tracing=tracing or TracingConfig(), **telemetry)
        config = MedhaConfig(
            model_loading_config=MODEL,
            telemetry=section,
            api_keys=api_keys or ApiKeysConfig(),
        )
        self.observatory = Observatory(config, Reachable(self), "r1")
        self.export = Export()
        if tracing is not None:
            self.observatory.tracing.export = self.export
        self.server = Server(
            config, self.engine, toy_text(512, 4096), observatory=self.observatory
        )
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.server.asgi()), base_url="http://medha"
        )

    async def complete(self, headers=None, **body) -> httpx.Response:
        fields = {
            "model": "toy",
            "prompt": [65, 66, 67],
            "max_tokens": 3,
            "temperature": 0,
            **body,
        }
        return await self.http.post("/v1/completions", json=fields, headers=headers)

    async def traced(self, count: int = 1) -> list:
        """What was sent, once it is; the delay is cut short."""
        self.observatory.tracing.flush()
        while len(self.export.offered) < count:
            self.export.changed.clear()
            await self.export.changed.wait()
        return self.export.offered


def exporting(monkeypatch, **options) -> TracingConfig:
    monkeypatch.setattr("deployments.telemetry.export.SpanExport", lambda config: None)
    return TracingConfig(exporter="otlp_http", **options)


def asking() -> list[asyncio.Task]:
    """The task that asks the controller for the live page, if somebody looks."""
    return [task for task in asyncio.all_tasks() if task.get_name() == live_page.TASK]
