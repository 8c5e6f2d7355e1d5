"""A real server for one variant: `medha-serve` with a changed configuration, in a Ray of its own,
ended afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from loadgen.errors import LoadgenError

_START_S = 300.0
_STOP_S = 40.0


def read_config(path: Path) -> dict[str, Any]:
    """A serve_config.yaml; raises LoadgenError."""
    try:
        config = msgspec.yaml.decode(path.read_bytes(), type=dict[str, Any])
        config["applications"][0]["args"]
    except OSError as error:
        raise LoadgenError(f"{path}: {error.strerror}") from None
    except (msgspec.DecodeError, KeyError, IndexError, TypeError):
        raise LoadgenError(
            f"{path} is no Serve configuration with applications[0].args"
        ) from None
    return config


def varied(config: Mapping[str, Any], scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with these keys of `scheduler`; other keys stay."""
    changed = copy.deepcopy(dict(config))
    args = changed["applications"][0]["args"]
    args["scheduler"] = {**args.get("scheduler", {}), **scheduler}
    return changed


def url_of(config: Mapping[str, Any]) -> str:
    """Where the server will listen."""
    options = config.get("http_options") or {}
    prefix = config["applications"][0].get("route_prefix") or "/"
    return f"http://127.0.0.1:{options.get('port', 8000)}{prefix.rstrip('/')}"


@contextlib.asynccontextmanager
async def serving(config: Mapping[str, Any], folder: Path) -> AsyncIterator[str]:
    """Yields the base URL of a server that is ready; its output goes to serve.log. Raises
    LoadgenError."""
    if await _answers(url_of(config)):
        raise LoadgenError(
            f"a server answers at {url_of(config)} already; experiments start their own"
        )
    file, log = _files(config, folder)
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "deployments.launcher",  # medha-serve
            file,
            stdout=output,
            stderr=output,
            env={**os.environ, "RAY_ADDRESS": "local"},
            start_new_session=True,
        )
    try:
        await _ready(url_of(config), process, log)
        yield url_of(config)
    finally:
        await _end(process)


def _files(config: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "serve_config.json"  # JSON is YAML
    file.write_bytes(msgspec.json.format(msgspec.json.encode(config)))
    return file, folder / "serve.log"


def _tail(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:])


async def _ready(url: str, process: asyncio.subprocess.Process, log: Path) -> None:
    ended = asyncio.create_task(process.wait())
    for _ in range(int(_START_S / 0.5)):
        if (await asyncio.wait([ended], timeout=0.5))[0]:
            break
        if await _answers(url):
            ended.cancel()
            return
    ended.cancel()
    raise LoadgenError(f"the server did not come up, see {log}: {_tail(log)}")


async def _answers(url: str) -> bool:
    """Whether a server of ours is there and healthy."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with session.get(f"{url}/health") as answer:
                return answer.status == 200
    return False


async def metrics_of(url: str, headers: Mapping[str, str]) -> str:
    """The server's /metrics page; `headers`: with a key, where it wants one. Raises
    LoadgenError."""
    try:
        timeout = aiohttp.ClientTimeout(total=30)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{url}/metrics", headers=headers) as answer,
        ):
            return await answer.text()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise LoadgenError(f"{url}/metrics: {error or type(error).__name__}") from None


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ctrl-C, and once more if that takes long; the server leaves nothing behind."""
    for _ in range(2):
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await process.wait()
            return
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
