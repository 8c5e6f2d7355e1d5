"""Pipeline: the loop around core.Scheduler and a linked grid. It runs in the controller's process.

It lives on one asyncio loop, which reads the links' sockets; no tensor is ever computed here. A
credit from stage 0 ("I am free") asks the scheduler for the next batch, so nobody polls; results
come back on the links and leave as one message per step for each ingress replica.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

import msgspec
from ray.exceptions import RayError

from medha_actors.actors.cluster import Cluster
from medha_actors.actors.doors import crash, crash_only, crash_only_task
from medha_actors.actors.flights import Flights
from medha_actors.actors.links import Link
from medha_actors.actors.records import Records
from medha_actors.actors.sinks import Sinks
from medha_actors.actors.telemetry.observer import Silence
from medha_actors.core.batch import Batch
from medha_actors.core.record import BatchRecord
from medha_actors.core.scheduler import Scheduler
from medha_actors.errors import LinkClosedError, MedhaError
from medha_actors.messages import Accepted, Event, Rejected, Request, StepResult

_log = logging.getLogger("medha.controller")
_encode = msgspec.msgpack.Encoder().encode
_decode_result = msgspec.msgpack.Decoder(StepResult).decode
RETRY_AFTER_S = 5.0  # a server that stops or starts asks to come back then
_FLUSH_S = 2.0  # in this time a living replica has taken its last events
_STOPPED = "the server stopped before this request was finished"
_STOPPING = Rejected(
    status=503,
    kind="service_unavailable_error",
    message="the server is stopping",
    retry_after_s=RETRY_AFTER_S,
)
_MAX_REBUILDS = 3  # in a row; then the process exits and Serve makes a new one
# new spares are not to compete with those who compute again what was lost
_SPARES_DELAY_S = 10.0


class _Sent(NamedTuple):
    """A batch on its way, and what is known of it."""

    batch: Batch
    record: BatchRecord
    at: float


class Pipeline:
    """Requests in, events out."""

    def __init__(
        self,
        cluster: Cluster,
        scheduler: Scheduler,
        sinks: Sinks,
        records: Records,
        observer: Silence,
        now: Callable[[], float],
    ) -> None:
        self.scheduler = scheduler
        self.spec = cluster.spec
        self.flights = Flights(cluster.crew.shape.stages)
        self._cluster = cluster
        self._sinks = sinks
        self._records = records
        self._observer = observer
        self._now = now
        # groups whose stage 0 has not given its credit back
        self._computing: set[int] = set()
        self._linked = False
        # set when nobody is left; None: not draining
        self._drained: asyncio.Event | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = math.inf  # when it does
        self._tasks: set[asyncio.Task[None]] = set()

    # ---------------------------------------------------------------- life

    async def connect(self) -> None:
        """Link the grid and begin."""
        await self._cluster.link()
        loop = asyncio.get_running_loop()
        ends = [self._cluster.first]
        if self._cluster.last is not self._cluster.first:
            ends.append(self._cluster.last)
        for links in ends:
            for group, link in enumerate(links):
                loop.add_reader(link.fileno(), self._read, link, group)
        self._linked = True
        self._spawn(self._hire_spares())
        self._pump()

    def stop(self) -> None:
        """Tear the grid down."""
        self._unlink()
        for task in self._tasks:
            task.cancel()
        self._cluster.stop()

    async def drain(self, timeout_s: float) -> int:
        """Take no new requests and let those in flight finish; what is left after `timeout_s` ends
        with an error that invites to try again. Returns how many requests that were."""
        self._drained = asyncio.Event()
        live = self.scheduler.live.by_id
        if live:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._drained.wait()
        unfinished = list(live)
        for request_id in unfinished:
            self._publish(
                [
                    msgspec.structs.replace(event, retry_after_s=RETRY_AFTER_S)
                    for event in self.scheduler.cancel(
                        request_id, self._now(), "error", _STOPPED
                    )
                ]
            )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_S):
                await self._sinks.emptied()
        return len(unfinished)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = crash_only_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hire_spares(self) -> None:
        await asyncio.sleep(_SPARES_DELAY_S)
        if self._linked:
            await self._cluster.hire_spares()

    def _unlink(self) -> None:
        self._linked = False
        loop = asyncio.get_running_loop()
        for link in (*self._cluster.first, *self._cluster.last):
            loop.remove_reader(link.fileno())

    def _fail(self, reason: str, hung: bool = False) -> None:
        """A stage is gone: mend the pipeline; requests go on from their known tokens."""
        if not self._linked:
            return
        _log.error("the pipeline is lost (%s); mending it", reason)
        self._unlink()
        self.flights.clear()
        self._computing.clear()
        self._observer.lost(self._now())
        self._spawn(self._mend(hung))

    async def _mend(self, hung: bool) -> None:
        """Replace what is dead (all, if something hangs), link the grid anew, go on."""
        for attempt in range(_MAX_REBUILDS):
            try:
                began = time.monotonic()
                lost = await self._cluster.revive(everything=hung or attempt > 0)
                self._publish(
                    self.scheduler.restart(self._now(), lost.groups, lost.found)
                )
                await self.connect()
                seconds = time.monotonic() - began
                _log.warning(
                    "the pipeline is back after %.1f s; KV lost in groups %s",
                    seconds,
                    lost.groups,
                )
                return
            except (MedhaError, RayError, OSError, TimeoutError) as error:
                _log.error(
                    "mending failed, try %d of %d: %s",
                    attempt + 1,
                    _MAX_REBUILDS,
                    error,
                )
        crash("the pipeline cannot be mended")

    # ---------------------------------------------------------------- requests

    @crash_only
    def submit(self, request: Request, replica: str) -> Accepted | Rejected:
        """Queue a request of an ingress replica; while draining, only one that another controller
        had accepted."""
        if self._drained is not None and request.resumed is None:
            return _STOPPING
        self._sinks.own(request.id, replica)
        now = self._now()
        older = self._records.superseded_by(request)
        if older is not None:
            self._publish(self.scheduler.cancel(older, now))
        answer = self.scheduler.add(request, now)
        self._observer.answered(request, answer, now)
        if isinstance(answer, Rejected):
            self._sinks.disown(request.id)
        else:
            self._records.begin(request, answer, now)
        self._pump()
        return answer

    @crash_only
    def cancel(self, request_id: str) -> bool:
        """The client is gone: its pages are free before the next batch. False: there is no such
        request."""
        events = self.scheduler.cancel(request_id, self._now())
        self._publish(events)
        self._pump()
        return bool(events)

    # ---------------------------------------------------------------- steps

    @crash_only
    def _read(self, link: Link, group: int) -> None:
        """One frame from stage 0 (an empty credit) or from the last stage (a result, which may be a
        credit too)."""
        try:
            packed, _ = link.recv()
        except LinkClosedError as error:
            self._fail(error.message)
            return
        began = time.perf_counter()
        landed = list(self.flights.take(_decode_result(packed))) if packed else []
        if not packed or not self._cluster.credits_apart:
            self._computing.discard(group)
        self._pump(landed)
        self._observer.worked(time.perf_counter() - began)

    def _pump(self, landed: Sequence[list[StepResult]] = ()) -> None:
        """Hand out batches while stage 0 is free, after the results of those that have `landed`.

        The stages have their next work before anybody is told of this: they do not wait for
        telemetry, nor for the streams.
        """
        now = self._now()
        events: list[Event] = []
        for results in landed:
            events += self.scheduler.complete(results, now)
        sent: list[_Sent] = []
        failure = self._hand_out(sent, events)
        for results in landed:
            self._observer.done(results, now)
        self._publish(events)
        for one in sent:
            self._observer.sent(*one)
        if failure is not None:
            self._fail(failure)
        self._arm()

    def _hand_out(self, sent: list[_Sent], events: list[Event]) -> str | None:
        """Send batches while stage 0 is free, and add them to `sent`; to `events`, which requests
        their time limits end. Returns why a link failed, if one did."""
        while (
            self._linked
            and not self._computing
            and len(self.flights) < self.scheduler.in_flight_limit
        ):
            now = self._now()
            events += self.scheduler.expire(now)
            batch = self.scheduler.next_batch(now)
            if batch is None:
                break
            self._computing = self.flights.add(batch, now)
            sent.append(_Sent(batch, self.scheduler.record, now))
            try:
                for group in sorted(self._computing):
                    self._cluster.first[group].send(_encode(batch.groups[group]))
            except LinkClosedError as error:
                return error.message
        return None

    def _publish(self, events: list[Event]) -> None:
        if events:
            self._observer.happened(events)
            self._records.happened(events, self._now())
            self._sinks.put(events)
        if self._drained is not None and not self.scheduler.live.by_id:
            self._drained.set()

    def _arm(self) -> None:
        """Wake up for the next time limit of a request, or for a step that hangs; a timer that is
        sooner than that is left to look again."""
        moments = []
        timeout_at = self.scheduler.next_wake(self._now())
        if timeout_at is not None:
            moments.append(timeout_at)
        if self.flights.oldest_at is not None:
            moments.append(self.flights.oldest_at + self._step_timeout_s)
        wake_at = min(moments, default=math.inf)
        if wake_at >= self._wakes_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = wake_at
        delay_s = max(0.001, wake_at - self._now())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._wake)

    @crash_only
    def _wake(self) -> None:
        self._wakes_at = math.inf
        now = self._now()
        oldest_at = self.flights.oldest_at
        if oldest_at is not None and now >= oldest_at + self._step_timeout_s:
            self._fail(f"a step took longer than {self._step_timeout_s:g} s", hung=True)
        self._publish(self.scheduler.expire(now))
        self._pump()

    @property
    def _step_timeout_s(self) -> float:
        return self._cluster.config.actors.step_timeout_s
