"""Controller: the scheduler actor (the paper's replica controller), the loop around core.Scheduler.

It lives on one asyncio loop, which reads the links' sockets and answers Ray calls; no tensor is
ever computed here. A credit from stage 0 ("I am free") asks the scheduler for the next batch, so
nobody polls; results come back on the links and leave as one message per step for each ingress
replica.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import ray
import torch
from ray.exceptions import RayError

from medha_actors.actors.calibration import profile_of
from medha_actors.actors.cluster import Cluster
from medha_actors.actors.flights import Flights, Strikes
from medha_actors.actors.links import Link
from medha_actors.actors.sinks import Sinks
from medha_actors.actors.telemetry.observer import Observer
from medha_actors.actors.telemetry.remote import Observed
from medha_actors.config import MedhaConfig, load
from medha_actors.core.kv_plan import Grid
from medha_actors.core.predictor import ExecutionModel
from medha_actors.core.scheduler import Scheduler
from medha_actors.errors import LinkClosedError, MedhaError
from medha_actors.messages import Accepted, Rejected, Request, StepResult
from medha_actors.model.spec import load_spec, resolve_dtype

_log = logging.getLogger("medha.controller")
_encode = msgspec.msgpack.Encoder().encode
_decode_request = msgspec.msgpack.Decoder(Request).decode
_decode_result = msgspec.msgpack.Decoder(StepResult).decode
_MAX_STRIKES = (
    2  # a request that was in flight in a group that died, this often in a row, ends with an error
)
_FLUSH_S = 2.0  # in this time a living replica has taken its last events
_RETRY_AFTER_S = 5.0  # a server that stops or starts asks to come back then
_MAX_REBUILDS = 3  # in a row; then the actor exits and Serve makes a new one


class Controller(Observed):
    """Owns the scheduler and the grid; one per deployment, as a Serve deployment actor."""

    def __init__(self, args: dict[str, Any]) -> None:
        self.config: MedhaConfig = load(args)
        self._sinks = Sinks()
        self._flights = Flights(self.config.parallel.spp)
        self._computing: set[int] = set()  # groups whose stage 0 has not given its credit back
        self._strikes = Strikes(_MAX_STRIKES)
        self._overtaken: deque[str] = deque(maxlen=256)  # cancelled while unknown
        self._ready: asyncio.Task[None] | None = None
        self._rebuild: asyncio.Task[None] | None = None
        self._linked = False
        self._draining = False  # no new requests are taken
        self._idle = asyncio.Event()  # while draining: nobody is left
        self._timer: asyncio.TimerHandle | None = None
        epoch, anchor = time.time(), time.monotonic()
        self._now: Callable[[], float] = lambda: epoch + time.monotonic() - anchor

    # ---------------------------------------------------------------- life

    async def ready(self) -> int:
        """Start once, wait until the pipeline serves; returns the largest context. Raises what went
        wrong."""
        if self._ready is None:
            self._ready = asyncio.create_task(self._start())
        await asyncio.shield(self._ready)
        return self._scheduler.max_tokens

    async def _start(self) -> None:
        spec = await asyncio.to_thread(load_spec, self.config.model_loading_config)
        device = self.config.actors.device
        if device == "auto":
            device = "cuda" if ray.cluster_resources().get("GPU", 0) > 0 else "cpu"
        dtype = str(
            resolve_dtype(self.config.model_loading_config, torch.device(device))
        ).removeprefix("torch.")
        self._cluster = Cluster(self.config, spec, device, dtype)
        await self._cluster.start(self._make_room)
        profile = await profile_of(self._cluster)
        parallel = self.config.parallel
        grid = Grid(
            stages=parallel.spp,
            groups=parallel.kvp,
            pages_per_group=self._cluster.pages,
            page_tokens=self.config.kv_cache.page_tokens,
            max_tokens_per_kvp_group=parallel.max_tokens_per_kvp_group,
            max_model_len_tokens=spec.max_positions,
        )
        self._scheduler = Scheduler(self.config, grid, ExecutionModel(profile))
        if self.config.telemetry.enabled:
            self._observer = Observer(self.config.telemetry, grid)
        await self._connect()
        for predecessor in self.predecessors():
            predecessor.retire.remote(at_once=False)

    def predecessors(self) -> list[Any]:
        """Handles of the controllers that this one replaces."""
        return []

    async def _make_room(self) -> None:
        """The predecessors finish what they have, and go."""
        calls = [predecessor.retire.remote(at_once=True) for predecessor in self.predecessors()]
        await asyncio.gather(*calls, return_exceptions=True)

    async def _connect(self) -> None:
        await self._cluster.link()
        loop = asyncio.get_running_loop()
        for group, link in enumerate(self._cluster.first):
            loop.add_reader(link.fileno(), self._read, link, group)
        if self._cluster.last is not self._cluster.first:
            for group, link in enumerate(self._cluster.last):
                loop.add_reader(link.fileno(), self._read, link, group)
        self._linked = True
        self._pump()

    def _fail(self, reason: str, hung: bool = False) -> None:
        """A stage is gone: mend the pipeline; requests go on from their known tokens."""
        if not self._linked:
            return
        _log.error("the pipeline is lost (%s); mending it", reason)
        self._unlink()
        flown = self._flights.clear()
        self._computing.clear()
        self._observer.lost(self._now())
        self._rebuild = asyncio.create_task(self._mend(hung, flown))

    def _unlink(self) -> None:
        """Read nothing of the stages any more."""
        self._linked = False
        loop = asyncio.get_running_loop()
        for link in (*self._cluster.first, *self._cluster.last):
            loop.remove_reader(link.fileno())

    async def _mend(self, hung: bool, flown: dict[str, set[int]]) -> None:
        """Replace what is dead (all, if something hangs), link the grid anew, go on."""
        for attempt in range(_MAX_REBUILDS):
            try:
                began = time.monotonic()
                lost = await self._cluster.revive(everything=hung or attempt > 0)
                for request_id in self._strikes.count(flown, lost):
                    message = "the pipeline died repeatedly while this request was in it"
                    self._publish(self._scheduler.cancel(request_id, self._now(), "error", message))
                flown = {}
                self._scheduler.restart(self._now(), lost)
                await self._connect()
                _log.warning(
                    "the pipeline is back after %.1f s; KV lost in groups %s",
                    time.monotonic() - began,
                    lost,
                )
                return
            except (MedhaError, RayError, OSError, TimeoutError) as error:
                _log.error("mending failed, try %d of %d: %s", attempt + 1, _MAX_REBUILDS, error)
        os._exit(1)  # Serve starts a new controller

    async def drain(self, timeout_s: float) -> int:
        """Take no new requests and let those in flight finish; what is left after `timeout_s` ends
        with an error that invites to try again. Returns how many requests that were."""
        self._draining = True
        self._sinks.drain()
        if self._ready is None or not self._ready.done() or self._ready.exception():
            return 0  # nothing has been accepted yet
        live = self._scheduler.live.by_id
        if live:
            self._idle.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), timeout_s)
        unfinished = list(live)
        for request_id in unfinished:
            message = "the server stopped before this request was finished"
            for event in self._scheduler.cancel(request_id, self._now(), "error", message):
                self._publish([msgspec.structs.replace(event, retry_after_s=_RETRY_AFTER_S)])
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._sinks.emptied(), _FLUSH_S)
        return len(unfinished)

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
        _log.warning("retired for a newer controller; %d requests were not finished", unfinished)
        await self.stop()
        os._exit(0)

    async def stop(self) -> None:
        """Tear the grid down."""
        if self._ready is None or not self._ready.done():
            return
        if self._rebuild is not None:
            self._rebuild.cancel()
        if self._linked:
            self._unlink()
        await self._cluster.stop()

    # ---------------------------------------------------------------- requests

    async def submit(self, packed_request: bytes, replica: str) -> bytes:
        """Queue a request; the msgpack of Accepted or Rejected."""
        request = _decode_request(packed_request)
        starting = self._ready is None or not self._ready.done()
        begins = request.resumed is None  # another one had been accepted by a lost controller
        if starting or (self._draining and begins):
            return _encode(
                Rejected(
                    status=503,
                    kind="service_unavailable_error",
                    message="the server is starting" if starting else "the server is stopping",
                    retry_after_s=_RETRY_AFTER_S,
                )
            )
        if (
            request.id in self._overtaken
        ):  # actor calls may overtake each other: its cancellation came first
            return _encode(
                Rejected(
                    status=499, kind="invalid_request_error", message="cancelled by the client"
                )
            )
        self._sinks.own(request.id, replica)
        now = self._now()
        answer: Accepted | Rejected = self._scheduler.add(request, now)
        self._observer.answered(request, answer, now)
        if isinstance(answer, Rejected):
            self._sinks.disown(request.id)
        self._pump()
        return _encode(answer)

    async def cancel(self, request_id: str) -> None:
        """The client is gone: its pages are free before the next batch."""
        events = self._scheduler.cancel(request_id, self._now())
        if not events:
            self._overtaken.append(request_id)
        self._publish(events)
        self._pump()

    async def stream(self, replica: str) -> AsyncIterator[bytes]:
        """All events of one ingress replica's requests, one item (a msgpack list of Event) per
        step."""
        try:
            async for packed in self._sinks.listen(replica):
                yield packed
        finally:
            self._observer.gone(replica)
            for request_id in self._sinks.forget(replica):
                self._publish(self._scheduler.cancel(request_id, self._now()))

    async def stats(self) -> bytes:
        """The scheduler's counters and the seconds of work of each stage (group 0), as a msgpack
        map."""
        stats = msgspec.to_builtins(self._scheduler.stats())
        return _encode(
            {**stats, "stage_busy_s": self._flights.busy_s, "steps_total": self._flights.done}
        )

    # ---------------------------------------------------------------- steps

    def _read(self, link: Link, group: int) -> None:
        """One frame from stage 0 (an empty credit) or from the last stage (a result, a credit too
        if it is stage 0)."""
        try:
            packed, _ = link.recv()
        except LinkClosedError as error:
            self._fail(error.message)
            return
        began = time.perf_counter()
        if packed:
            self._take(_decode_result(packed))
        if not packed or self._cluster.last is self._cluster.first:
            self._computing.discard(group)
        self._pump()
        self._observer.worked(time.perf_counter() - began)

    def _take(self, result: StepResult) -> None:
        for results in self._flights.take(result):
            now = self._now()
            self._observer.done(results, now)
            self._publish(self._scheduler.complete(results, now))

    def _pump(self) -> None:
        """Hand out batches while stage 0 is free."""
        while (
            self._linked
            and not self._computing
            and len(self._flights) < self._scheduler.in_flight_limit
        ):
            now = self._now()
            self._publish(self._scheduler.expire(now))
            batch = self._scheduler.next_batch(now)
            if batch is None:
                break
            self._computing = self._flights.add(batch, now)
            self._observer.sent(batch, self._scheduler.record, now)
            try:
                for group in sorted(self._computing):
                    self._cluster.first[group].send(_encode(batch.groups[group]))
            except LinkClosedError as error:
                self._fail(error.message)
        self._arm()

    def _publish(self, events: list[Any]) -> None:
        if events:
            self._observer.happened(events)
            self._sinks.put(events)
        if self._draining and not self._scheduler.live.by_id:
            self._idle.set()

    def _arm(self) -> None:
        """Wake up for the next time limit of a request, or for a step that hangs."""
        if self._timer is not None:
            self._timer.cancel()
        moments = [m for m in (self._scheduler.next_wake(self._now()),) if m is not None]
        if (oldest := self._flights.oldest_at) is not None:
            moments.append(oldest + self.config.actors.step_timeout_s)
        if moments:
            delay = max(0.001, min(moments) - self._now())
            self._timer = asyncio.get_running_loop().call_later(delay, self._wake)

    def _wake(self) -> None:
        now = self._now()
        oldest, limit_s = self._flights.oldest_at, self.config.actors.step_timeout_s
        if oldest is not None and now >= oldest + limit_s:
            self._fail(f"a step took longer than {limit_s:g} s", hung=True)
        self._publish(self._scheduler.expire(now))
        self._pump()
