"""Sinks: from the engine's events to the ingress replicas, one message per step and replica.

`put` never blocks the controller. A replica that reads slowly finds the events of several steps in
one message.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

import msgspec

from medha_actors.fleet.notices import Notice
from medha_actors.messages import DrainingEvent, Event, FinishedEvent

_encode = msgspec.msgpack.Encoder().encode
_UNREAD = 10_000  # events; who has more to read hears no notices until it has read them


class _Sink:
    def __init__(self) -> None:
        self.events: list[Event | DrainingEvent | Notice] = []
        self.filled = asyncio.Event()
        self.open = True
        self.heard = False  # a notice of all pages, and every one since


class Sinks:
    """Which replica waits for which request, and what it has not read yet."""

    def __init__(self) -> None:
        self._sinks: dict[str, _Sink] = {}
        self._owners: dict[str, str] = {}
        self._draining = False
        self._taken = asyncio.Event()

    async def emptied(self) -> None:
        """Wait until every replica has taken all its events."""
        while any(sink.events for sink in self._sinks.values()):
            self._taken.clear()
            await self._taken.wait()

    def drain(self) -> None:
        """Tell every replica, and those that come later, that no new request is taken."""
        self._draining = True
        for sink in self._sinks.values():
            sink.events.append(DrainingEvent())
            sink.filled.set()

    def own(self, request_id: str, replica: str) -> None:
        """Events of this request go to this replica."""
        self._owners[request_id] = replica
        self._sinks.setdefault(
            replica, _Sink()
        )  # it may begin to listen a moment later

    def disown(self, request_id: str) -> None:
        """The request was refused."""
        self._owners.pop(request_id, None)

    def put(self, events: Iterable[Event]) -> None:
        """Route events; those of an unknown or vanished reader are dropped."""
        for event in events:
            owner = self._owners.get(event.request_id)
            if isinstance(event, FinishedEvent):
                self._owners.pop(event.request_id, None)
            sink = self._sinks.get(owner) if owner is not None else None
            if sink is not None:
                sink.events.append(event)
                sink.filled.set()

    def announce(self, notice: Notice, whole: Callable[[], Notice]) -> None:
        """Tell every replica of the grid; those that have not heard the notices before get
        `whole()`."""
        for sink in self._sinks.values():
            if len(sink.events) > _UNREAD:
                sink.heard = False
                continue
            sink.events.append(notice if sink.heard else whole())
            sink.heard = True
            sink.filled.set()

    async def listen(self, replica: str) -> AsyncIterator[bytes]:
        """Packed lists of events, until `forget`."""
        sink = self._sinks.setdefault(replica, _Sink())
        if self._draining:
            yield _encode([DrainingEvent()])
        while sink.open:
            await sink.filled.wait()
            sink.filled.clear()
            events = sink.events
            sink.events = []
            self._taken.set()
            if events:
                yield _encode(events)

    def forget(self, replica: str) -> list[str]:
        """The replica is gone; returns the requests that nobody waits for any more."""
        sink = self._sinks.pop(replica, None)
        self._taken.set()
        if sink is not None:
            sink.open = False
            sink.filled.set()
        orphans = [
            request_id for request_id, owner in self._owners.items() if owner == replica
        ]
        for request_id in orphans:
            del self._owners[request_id]
        return orphans
