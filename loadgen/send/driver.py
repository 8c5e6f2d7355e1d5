"""Sends a workload at its pace and collects the records.

Open loop: requests go out when they are due, however slow the server is; the difference is written
down as lateness. Closed loop: a fixed number of requests is under way at any time, started one by
one over the ramp-up. In either, what is let go may be the first turn of a session, whose next one
follows its answer after a pause. Probes run beside the load until it is done.
"""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import Callable, Iterable, Iterator

import msgspec

from loadgen.records import PROBE, UNSENT, PlannedRequest, RequestRecord, open_record
from loadgen.send.targets import Target
from loadgen.workload.sessions import as_answered

_HEARTBEAT_S = 0.05


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How requests are let go."""

    closed_loop: bool = False
    max_concurrency: int | None = None
    ramp_up_s: float = 0.0  # closed loop: over this time all places are opened


class Driver:
    """One run. `records` grows as requests are sent; a live view may look at it and at `active` at
    any time."""

    def __init__(
        self,
        target: Target,
        requests: list[PlannedRequest],
        pace: Pace,
        *,
        probes: Iterable[PlannedRequest] = (),
        run_id: str = "run",
        on_record: Callable[[RequestRecord], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.target = target
        self.requests = requests
        self.pace = pace
        self.records: list[RequestRecord] = []
        self.active: dict[str, RequestRecord] = {}
        self.loop_lags_s: list[float] = []
        self.origin = 0.0
        self.stopped = False
        self.done_sending = False
        self._probes = probes
        self._run_id = run_id
        self._on_record = on_record
        self._clock = clock
        self._sleepers: set[asyncio.Future[None]] = set()
        self._room: asyncio.Future[None] | None = None
        self._load_active = 0
        self._first = [request for request in requests if request.after is None]
        self._following = {
            request.after: request for request in requests if request.after is not None
        }
        self._turns: set[asyncio.Task[None]] = set()  # pauses of sessions
        self._broken: BaseException | None = None
        self._idle: asyncio.Event = asyncio.Event()

    async def run(self) -> float:
        """Send everything and wait for the answers; returns the seconds it took. Records are
        rebased to the start."""
        gc.collect()
        # what exists already is not looked at again: no long pauses of the collector in mid-run
        gc.freeze()
        self.origin = self._clock()
        tasks = [
            asyncio.create_task(self._heartbeat()),
            asyncio.create_task(self._send_probes()),
        ]
        try:
            if self.pace.closed_loop:
                await self._closed_loop()
            else:
                await self._open_loop(self._first)
            self.done_sending = True
            while (self._load_active or self._turns) and not self.stopped:
                self._idle.clear()
                await self._idle.wait()
            if self._broken is not None:
                raise self._broken
        finally:
            tasks += self._turns
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            gc.unfreeze()
        return self._close_records()

    def stop(self) -> None:
        """Send nothing more and give up what is under way."""
        self.stopped = True
        for sleeper in list(self._sleepers):
            _wake(sleeper)
        _wake(self._room)
        self.target.cancel()
        self._idle.set()

    def _close_records(self) -> float:
        """Probes still under way are given up with the load that they measured; instants become
        relative."""
        for record in self.active.values():
            record.cancelled = True
        self.target.cancel()
        load = [
            record.ended_at
            for record in self.records
            if record.kind != PROBE and record.ended_at is not None
        ]
        duration = max(load, default=self._clock()) - self.origin
        for record in self.records:
            record.rebase(self.origin)
        return duration

    async def _open_loop(self, requests: Iterable[PlannedRequest]) -> None:
        for request in requests:
            record, prepared = self._prepare(request)
            record.scheduled_at = self.origin + (request.at or 0.0)
            if not await self._until(record.scheduled_at):
                return
            record.released_at = record.scheduled_at
            limit = self.pace.max_concurrency if request.kind != PROBE else None
            if limit is not None and self._load_active >= limit:
                while self._load_active >= limit and not self.stopped:
                    self._room = asyncio.get_running_loop().create_future()
                    await self._room
                record.released_at = self._clock()
            if self.stopped:
                return
            self._send(record, prepared)

    async def _closed_loop(self) -> None:
        pending = iter(self._first)
        places = self.pace.max_concurrency or 1
        gap = self.pace.ramp_up_s / places
        await asyncio.gather(
            *(
                self._place(pending, self.origin + place * gap)
                for place in range(places)
            )
        )

    async def _place(self, pending: Iterator[PlannedRequest], opens_at: float) -> None:
        """One of the closed loop's users: sends the next request as soon as its last one is
        answered."""
        if not await self._until(opens_at):
            return
        for request in pending:
            released = max(self._clock(), opens_at)
            record, prepared = self._prepare(request)
            record.scheduled_at = record.released_at = released
            answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._send(record, prepared, answered)
            await answered
            if self.stopped:
                return

    async def _send_probes(self) -> None:
        await self._open_loop(self._probes)

    def _prepare(self, request: PlannedRequest) -> tuple[RequestRecord, object]:
        record = open_record(request, self._run_id)
        if self._on_record is not None:
            self._on_record(record)
        return record, self.target.prepare(request, record)

    def _send(
        self,
        record: RequestRecord,
        prepared: object,
        answered: asyncio.Future[None] | None = None,
    ) -> None:
        self.records.append(record)
        self.active[record.id] = record
        load = record.kind != PROBE
        self._load_active += load

        def done(record: RequestRecord) -> None:
            del self.active[record.id]
            self._load_active -= load
            following = self._following.get(record.index) if load else None
            if following is None:
                _wake(answered)
            else:
                self._go_on(following, record, answered)
            _wake(self._room)
            if not self._load_active:
                self._idle.set()

        self.target.send(prepared, record, done)

    def _go_on(
        self,
        request: PlannedRequest,
        before: RequestRecord,
        answered: asyncio.Future[None] | None,
    ) -> None:
        """A session's next turn, if it can have one; whoever waits for the answer waits on."""
        if not before.completed or self.stopped:
            self._break_off(request, before)
            _wake(answered)
            return
        task = asyncio.get_running_loop().create_task(
            self._take_turn(request, before, answered)
        )
        self._turns.add(task)

        def over(task: asyncio.Task[None]) -> None:
            self._turns.discard(task)
            if not task.cancelled() and task.exception() is not None:
                self._broken = task.exception()
                self.stop()
            self._idle.set()

        task.add_done_callback(over)

    async def _take_turn(
        self,
        request: PlannedRequest,
        before: RequestRecord,
        answered: asyncio.Future[None] | None,
    ) -> None:
        assert request.turn is not None
        assert before.ended_at is not None
        record, prepared = self._prepare(as_answered(request, before))
        record.scheduled_at = record.released_at = (
            before.ended_at + request.turn.pause_s
        )
        if await self._until(record.scheduled_at):
            self._send(record, prepared, answered)
        else:
            _wake(answered)

    def _break_off(self, request: PlannedRequest | None, before: RequestRecord) -> None:
        """What is left of a session whose turn failed fails too, unsent; not if we gave it up."""
        while request is not None and not before.cancelled and not self.stopped:
            record = open_record(request, self._run_id)
            record.scheduled_at = record.released_at = self._clock()
            record.ended_at = record.released_at
            record.error = UNSENT
            self.records.append(record)
            request = self._following.get(request.index)

    async def _until(self, instant: float) -> bool:
        """Wait for an instant of the clock; False if the run was stopped meanwhile."""
        loop = asyncio.get_running_loop()
        while not self.stopped:
            seconds = instant - self._clock()
            if seconds <= 0 or math.isnan(seconds):
                return True
            sleeper: asyncio.Future[None] = loop.create_future()
            self._sleepers.add(sleeper)
            timer = loop.call_later(seconds, _wake, sleeper)
            try:
                await sleeper
            finally:
                timer.cancel()
                self._sleepers.discard(sleeper)
        return False

    async def _heartbeat(self) -> None:
        """Measures how late the event loop is: tokens are seen that late, too."""
        while True:
            due = self._clock() + _HEARTBEAT_S
            await asyncio.sleep(_HEARTBEAT_S)
            self.loop_lags_s.append(max(0.0, self._clock() - due))


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
