"""`poison`: requests that used to kill the pipeline for everybody, beside bystanders.

A request whose values no arithmetic survives gets an error of its own; the others do not notice.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from tests.chaos import tables
from tests.chaos.judging import Stream, is_whole
from tests.chaos.kills import undisturbed
from tests.chaos.server import Server, running
from tests.chaos.streams import Load

_REFUSED: Final = (400,)
_EITHER_WAY: Final = (200, 400)
_NAME_CHARS: Final = 80
_MANY: Final = tuple([str(token) for token in range(200)])


class Poison(msgspec.Struct, frozen=True):
    """One request, and how it may be answered."""

    statuses: tuple[int, ...]
    fields: dict[str, Any]

    @property
    def name(self) -> str:
        text = ", ".join([f"{name} {value}" for name, value in self.fields.items()])
        return text if len(text) <= _NAME_CHARS else f"{text[:_NAME_CHARS]}..."


POISONS: Final = (
    Poison(_REFUSED, {"repetition_penalty": 1e-39, "top_k": 5}),
    Poison(_REFUSED, {"repetition_penalty": 1e-45, "temperature": 0}),
    Poison(_REFUSED, {"repetition_penalty": 1e-320}),
    Poison(_REFUSED, {"repetition_penalty": 1e-39, "n": 4}),
    Poison(_REFUSED, {"repetition_penalty": 1e-39, "logprobs": 3}),
    Poison(_EITHER_WAY, {"temperature": 1e-45}),
    Poison(_EITHER_WAY, {"temperature": 1e-320, "top_p": 1e-320}),
    Poison(_EITHER_WAY, {"min_p": 1.0, "top_p": 1e-45}),
    Poison(
        _EITHER_WAY,
        {
            "repetition_penalty": 100.0,
            "presence_penalty": -2.0,
            "frequency_penalty": -2.0,
        },
    ),
    Poison(
        _EITHER_WAY, {"temperature": 1e-38, "logit_bias": dict.fromkeys(_MANY, -100.0)}
    ),
)


class Answered(msgspec.Struct, frozen=True):
    """How one poison was answered. `rebuilds`: of the pipeline, while it was there."""

    name: str
    status: int
    message: str
    rebuilds: int
    bystanders_whole: int
    bystanders: int
    missed: list[str]


def run(results: Path) -> int:
    """One poison at a time beside nine bystanders; exit status 1 if any of them noticed."""
    answered: list[Answered] = []
    with running(results / "server") as server:
        references = undisturbed(server)
        for poison in POISONS:
            answered.append(_dose(server, poison, references))
            print(_line(answered[-1]), file=sys.stderr, flush=True)
    print(table(answered))
    tables.save(results / "poison.json", answered)
    return int(any(each.missed for each in answered))


def _dose(server: Server, poison: Poison, references: Mapping[str, Stream]) -> Answered:
    """From rest to rest."""
    server.settle()
    before = server.rebuilds()
    load = Load(server.url, server.model)
    status, message = asyncio.run(_beside(server, load, poison))
    server.settle()
    rebuilds = server.rebuilds() - before
    whole = sum([is_whole(stream, references[stream.name]) for stream in load.all])
    return Answered(
        name=poison.name,
        status=status,
        message=message,
        rebuilds=rebuilds,
        bystanders_whole=whole,
        bystanders=len(load.all),
        missed=missed(poison, status, rebuilds, whole, len(load.all)),
    )


async def _beside(server: Server, load: Load, poison: Poison) -> tuple[int, str]:
    """The poison's status (0: none) and message."""
    async with asyncio.TaskGroup() as group:
        group.create_task(load.run())
        await load.ready.wait()
        body = {"model": server.model, "prompt": "hi", "max_tokens": 4, **poison.fields}
        limit = aiohttp.ClientTimeout(total=120)
        try:
            async with (
                aiohttp.ClientSession(timeout=limit) as session,
                session.post(f"{server.url}/v1/completions", json=body) as answer,
            ):
                return answer.status, _message(await answer.text())
        except (aiohttp.ClientError, OSError) as error:
            return 0, str(error) or type(error).__name__


def _message(text: str) -> str:
    try:
        error = json.loads(text).get("error") or {}
        return str(error.get("message", ""))
    except (ValueError, AttributeError):
        return text[:200]


def missed(
    poison: Poison, status: int, rebuilds: int, whole: int, bystanders: int
) -> list[str]:
    """What it should not have done, in words."""
    short: list[str] = []
    if status not in poison.statuses:
        short.append(f"answered {status}, not {' or '.join(map(str, poison.statuses))}")
    if rebuilds:
        short.append(f"{rebuilds} rebuilds")
    if whole < bystanders:
        short.append(f"{whole} of {bystanders} bystanders whole")
    return short


def _line(answered: Answered) -> str:
    return f"{answered.name}: {answered.status}, missed {answered.missed or 'nothing'}"


def table(answered: list[Answered]) -> str:
    head = ("request", "answer", "rebuilds", "bystanders whole", "missed")
    rows = [
        [
            each.name,
            f"{each.status} {each.message}".strip(),
            str(each.rebuilds),
            f"{each.bystanders_whole} of {each.bystanders}",
            "; ".join(each.missed) or "nothing",
        ]
        for each in answered
    ]
    return tables.markdown(head, rows)
