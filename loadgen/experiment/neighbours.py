"""Two tenants on one real server: a modest one that sends less than its share, and a greedy one
that sends many times its own. Each has an API key; the greedy one stops with the modest one."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from pathlib import Path
from typing import Any

import msgspec

from loadgen.options import RunOptions
from loadgen.preparation import prepare, suited, terms_of
from loadgen.run import Watch, conclude, load
from loadgen.send.driver import Driver
from loadgen.send.probe import ServerProbe
from loadgen.show.output import Say, claim_directory
from loadgen.workload.plan import build_plan

MODEST = "modest"
GREEDY = "greedy"
MODEST_LOAD = 0.75  # of its share, which is half of the capacity


def with_keys(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A configuration whose server knows both tenants' keys, which are made once for a folder."""
    file = folder / "keys"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{tenant} sk-{secrets.token_hex(16)}" for tenant in (MODEST, GREEDY)]
        file.touch(mode=0o600)
        file.write_text("\n".join(lines) + "\n")
    config["applications"][0]["args"]["api_keys"] = {"file": str(file.resolve())}
    return config


def headers_of(folder: Path) -> dict[str, str]:
    """The header `authorization` of each tenant; empty where there are no keys."""
    file = folder / "keys"
    if not file.exists():
        return {}
    words = [line.split() for line in file.read_text().splitlines()]
    return {tenant: f"Bearer {key}" for tenant, key in words}


def as_tenant(options: RunOptions, authorization: str, directory: Path) -> RunOptions:
    """The same options for one of them."""
    server = msgspec.structs.replace(
        options.server,
        header=(*options.server.header, f"authorization={authorization}"),
    )
    report = msgspec.structs.replace(
        options.report, result_dir=str(directory), label=directory.name
    )
    return msgspec.structs.replace(options, server=server, report=report)


def paced(options: RunOptions, rate: float, count: int, seed: int) -> RunOptions:
    """The same mix at another rate, from another seed."""
    workload = msgspec.structs.replace(options.workload, num_prompts=count, seed=seed)
    pace = msgspec.structs.replace(options.pace, request_rate=rate)
    return msgspec.structs.replace(options, workload=workload, pace=pace)


async def side_by_side(modest: RunOptions, greedy: RunOptions, say: Say) -> list[int]:
    """Both loads at once. Returns their exit statuses."""
    over = asyncio.Event()

    async def until_over(driver: Driver) -> None:
        await over.wait()

    async def first() -> int:
        try:
            return await _run(modest, say, None)
        finally:
            over.set()

    return list(await asyncio.gather(first(), _run(greedy, say, until_over)))


async def _run(options: RunOptions, say: Say, watch: Watch | None) -> int:
    directory = Path(options.report.result_dir or ".")
    shutil.rmtree(directory, ignore_errors=True)  # of an attempt that was cut short
    terms = terms_of(options.judgement)
    plan = build_plan(options.workload, options.pace)
    async with ServerProbe(options.server) as server:
        options, plan = await suited(server, plan, options, say)
        prepared = await prepare(server, plan, terms, options, say)
        claim_directory(directory)
        record = await load(server, prepared, plan, options, say, watch)
    result, health, status = conclude(record, terms, options, directory)
    say(
        f"  {options.report.label}: {result['completed']} answered; load generator {health.verdict}"
    )
    return status
