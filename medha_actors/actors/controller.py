"""Controller: the scheduler actor (the paper's replica controller). Thin: Ray calls in, the
Pipeline does the work.

When it dies, the stage actors outlive it, Serve makes a new one of the same name, which finds them,
and the ingress replicas submit their live requests to it again from their known tokens.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from medha_actors.actors.announcer import Announcer
from medha_actors.actors.calibration import profile_of
from medha_actors.actors.cluster import Cluster
from medha_actors.actors.orphans import Owner
from medha_actors.actors.pipeline import RETRY_AFTER_S, Pipeline
from medha_actors.actors.records import Records
from medha_actors.actors.sinks import Sinks
from medha_actors.actors.telemetry.observer import Observer, Silence
from medha_actors.actors.telemetry.reporter import Mute, Reporter
from medha_actors.config import MedhaConfig, load
from medha_actors.core.kv_plan import Grid
from medha_actors.core.predictor import ExecutionModel, Profile
from medha_actors.core.scheduler import Scheduler
from medha_actors.messages import EngineFacts, Rejected, Request
from medha_actors.telemetry.histogram import Family
from medha_actors.telemetry.reports import Asked

_log = logging.getLogger("medha.controller")
_encode = msgspec.msgpack.Encoder().encode
_decode_request = msgspec.msgpack.Decoder(Request).decode
_decode_families = msgspec.msgpack.Decoder(list[Family]).decode
_decode_asked = msgspec.msgpack.Decoder(Asked).decode
_STARTING = Rejected(
    status=503,
    kind="service_unavailable_error",
    message="starting",
    retry_after_s=RETRY_AFTER_S,
)
_OVERTAKEN = Rejected(
    status=499, kind="invalid_request_error", message="cancelled by the client"
)


class Controller:
    """Owns the pipeline; one per deployment, as a Serve deployment actor."""

    stage_class: Any = None  # None: StageActor

    def __init__(self, args: dict[str, Any], owner: Owner | None = None) -> None:
        """`owner`: this actor's own name, under which its stage actors outlive it; None: they end
        with it."""
        self.config: MedhaConfig = load(args)
        self._owner = owner
        self._sinks = Sinks()
        self._records = Records(
            self.config.stream.resume_s, self.config.stream.resume_bytes
        )
        self._observer = Silence()
        self._reporter = Mute()
        self._announcer: Announcer | None = None
        self._overtaken: deque[str] = deque(maxlen=256)  # cancelled while unknown
        self._starting: asyncio.Task[Pipeline] | None = None
        epoch = time.time()
        anchor = time.monotonic()
        self._now: Callable[[], float] = lambda: epoch + time.monotonic() - anchor

    # ---------------------------------------------------------------- life

    async def ready(self) -> bytes:
        """Start once, wait until the pipeline serves; the msgpack of EngineFacts. Raises what went
        wrong; the next call tries again."""
        if self._starting is None or _failed(self._starting):
            self._starting = asyncio.create_task(self._start())
        pipeline = await asyncio.shield(self._starting)
        described = (pipeline.spec, self.config.model_loading_config)
        digest = hashlib.sha256(msgspec.json.encode(described)).hexdigest()
        facts = EngineFacts(
            max_model_len_tokens=pipeline.scheduler.max_tokens, model=digest
        )
        return _encode(facts)

    async def _start(self) -> Pipeline:
        cluster = await Cluster.start(
            self.config, self._owner, self.stage_class, self._make_room
        )
        if cluster.profile:
            profile = msgspec.msgpack.decode(cluster.profile, type=Profile)
        else:
            profile = await profile_of(cluster)
            await cluster.keep(_encode(profile))
        parallel = cluster.config.parallel
        grid = Grid(
            stages=parallel.spp,
            groups=parallel.kvp,
            pages_per_group=cluster.pages,
            page_tokens=self.config.kv_cache.page_tokens,
            max_tokens_per_kvp_group=parallel.max_tokens_per_kvp_group,
            max_model_len_tokens=cluster.spec.max_positions,
            slots_per_group=cluster.slots,
        )
        scheduler = Scheduler(
            self.config.scheduler,
            self.config.objectives,
            self.config.cache_name,
            grid,
            ExecutionModel(profile),
        )
        if self.config.telemetry.enabled:
            observer = Observer(self.config.telemetry, grid)
            model_id = self.config.model_loading_config.model_id
            self._observer = observer
            self._reporter = Reporter(observer, scheduler, model_id)
        pipeline = Pipeline(
            cluster, scheduler, self._sinks, self._records, self._observer, self._now
        )
        await pipeline.connect()
        if self.config.fleet.num_grids is not None:
            self._announcer = Announcer(self.config, scheduler, self._sinks, self._now)
            self._announcer.start()
        for predecessor in self.predecessors():
            predecessor.retire.remote(at_once=False)
        return pipeline

    async def drain(self, timeout_s: float) -> int:
        """Take no new requests and let those in flight finish; what is left after `timeout_s` ends
        with an error that invites to try again. Returns how many requests that were."""
        self._sinks.drain()
        if self._announcer is not None:
            self._announcer.drain()
        return (
            await self._pipeline.drain(timeout_s) if self._pipeline is not None else 0
        )

    def predecessors(self) -> list[Any]:
        """Handles of the controllers that this one replaces."""
        return []

    async def _make_room(self) -> None:
        """The predecessors finish what they have, and go."""
        calls = [
            predecessor.retire.remote(at_once=True)
            for predecessor in self.predecessors()
        ]
        await asyncio.gather(*calls, return_exceptions=True)

    async def retire(self, at_once: bool) -> None:
        """A newer controller takes over; this one gives its resources back and its process ends.

        `at_once`: the other one waits for the resources, so no new requests are taken. Otherwise
        Serve sends them elsewhere by and by. In both cases what is in flight may finish within
        `drain_timeout_s`.
        """
        limit_s = self.config.drain_timeout_s
        if not at_once:
            await asyncio.sleep(limit_s)
        unfinished = await self.drain(limit_s if at_once else 0.0)
        _log.warning(
            "retired for a newer controller; %d requests were not finished", unfinished
        )
        await self.stop()
        os._exit(0)

    async def stop(self) -> None:
        """Tear the grid down."""
        if self._pipeline is not None:
            self._pipeline.stop()
        elif self._starting is not None and self._starting.cancel():
            await asyncio.wait([self._starting])  # it gives back what it has reserved

    @property
    def _pipeline(self) -> Pipeline | None:
        """None until it serves."""
        if (
            self._starting is None
            or not self._starting.done()
            or _failed(self._starting)
        ):
            return None
        return self._starting.result()

    # ---------------------------------------------------------------- requests

    async def submit(self, packed_request: bytes, replica: str) -> bytes:
        """Queue a request; the msgpack of Accepted or Rejected."""
        request = _decode_request(packed_request)
        if self._pipeline is None:
            return _encode(_STARTING)
        if request.id in self._overtaken:  # actor calls may overtake each other
            return _encode(_OVERTAKEN)
        return _encode(self._pipeline.submit(request, replica))

    async def cancel(self, request_id: str) -> None:
        """The client is gone: its pages are free before the next batch."""
        if self._pipeline is None or not self._pipeline.cancel(request_id):
            self._overtaken.append(request_id)

    async def record(self, answer_id: str) -> bytes:
        """What is known of an answer, to resume it: the msgpack of Record or None."""
        return _encode(self._records.find(answer_id, self._now()))

    async def stream(self, replica: str) -> AsyncIterator[bytes]:
        """All events of one ingress replica's requests, one item (a msgpack list of Event) per
        step."""
        try:
            async for packed in self._sinks.listen(replica):
                yield packed
        finally:
            self._leave(replica)

    async def leave(self, replica: str) -> None:
        """The replica reads this stream no more: its requests end."""
        self._leave(replica)

    def _leave(self, replica: str) -> None:
        self._observer.gone(replica)
        for request_id in self._sinks.forget(replica):
            if self._pipeline is not None:
                self._pipeline.cancel(request_id)

    # ---------------------------------------------------------------- telemetry
    # Msgpack of what medha_actors.telemetry.reports.Reports describes.

    async def notice(self) -> bytes:
        """The grid's last notice, without pages: the msgpack of Notice or None."""
        return _encode(None if self._announcer is None else self._announcer.last)

    async def stats(self) -> bytes:
        """The scheduler's counters and the seconds of work of each stage (group 0), as a msgpack
        map; empty until it serves."""
        if self._pipeline is None:
            return _encode({})
        stats = msgspec.to_builtins(self._pipeline.scheduler.stats())
        flights = self._pipeline.flights
        stats |= {"stage_busy_s": flights.busy_s, "steps_total": flights.done}
        return _encode(stats)

    async def metrics(self) -> bytes:
        return _encode(self._reporter.metrics())

    async def report(self, replica: str, families: bytes) -> None:
        self._reporter.report(replica, _decode_families(families))

    async def find_timelines(self, name: str) -> bytes:
        return _encode(self._reporter.find_timelines(name))

    async def take_timelines(self, asked: bytes) -> bytes:
        return _encode(self._reporter.take_timelines(_decode_asked(asked)))

    async def last_timelines(self, count: int) -> bytes:
        return _encode(self._reporter.last_timelines(count))

    async def snapshot(self, after: int) -> bytes:
        return _encode(self._reporter.snapshot(after, self._now()))


def _failed(task: asyncio.Task[Pipeline]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
