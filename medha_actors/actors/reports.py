"""RayReports: the engine's telemetry, asked over Ray (medha_actors.telemetry.reports.Reports)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from medha_actors.telemetry.histogram import Family
from medha_actors.telemetry.reports import Asked, Snapshot, StepReport
from medha_actors.telemetry.timelines import Timeline

_encode = msgspec.msgpack.Encoder().encode
_decode_families = msgspec.msgpack.Decoder(list[Family]).decode
_decode_timelines = msgspec.msgpack.Decoder(list[Timeline]).decode
_decode_last = msgspec.msgpack.Decoder(tuple[list[Timeline], list[StepReport]]).decode
_decode_snapshot = msgspec.msgpack.Decoder(Snapshot).decode
Call = Callable[[Callable[[Any], Awaitable[Any]]], Awaitable[Any]]


class RayReports:
    """`call` runs a call on the controller of now; it raises UnavailableError if there is none."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def metrics(self) -> list[Family]:
        return _decode_families(
            await self._call(lambda engine: engine.metrics.remote())
        )

    async def report(self, replica: str, families: list[Family]) -> None:
        packed = _encode(families)
        await self._call(lambda engine: engine.report.remote(replica, packed))

    async def find_timelines(self, name: str) -> list[Timeline]:
        packed = await self._call(lambda engine: engine.find_timelines.remote(name))
        return _decode_timelines(packed)

    async def take_timelines(self, asked: Asked) -> list[Timeline]:
        packed = _encode(asked)
        taken = await self._call(lambda engine: engine.take_timelines.remote(packed))
        return _decode_timelines(taken)

    async def last_timelines(
        self, count: int
    ) -> tuple[list[Timeline], list[StepReport]]:
        packed = await self._call(lambda engine: engine.last_timelines.remote(count))
        return _decode_last(packed)

    async def snapshot(self, after: int, grid: str = "") -> Snapshot:
        packed = await self._call(lambda engine: engine.snapshot.remote(after))
        return _decode_snapshot(packed)
