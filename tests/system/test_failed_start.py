"""A server that cannot start: it says why and ends, and keeps nobody waiting."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from serve_process import end, free_port, launch, write_config

pytestmark = pytest.mark.slow
TOO_MANY = {
    "model_loading_config": {"model_id": "random", "model_source": "random"},
    "actors": {"num_cpus": len(os.sched_getaffinity(0))},
    "parallel": {"spp": 1, "tp": 2},
}
Failing = tuple[str, subprocess.Popen, Path]


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[Failing]:
    """A server without room for its stage: its URL, its process, and what it writes."""
    path = tmp_path / "serve_config.yaml"
    url = write_config(path, free_port(), **TOO_MANY)
    log = tmp_path / "serve.log"
    with log.open("w") as output:
        server = launch(path, output)
        try:
            yield url, server, log
        finally:
            if server.poll() is None:
                end(server)


async def last_answer(url: str, server: subprocess.Popen) -> int | None:
    """What one who asks until the server has ended is told at last: a status; None: the connection
    was closed."""
    body = {"model": "random", "prompt": [1, 2, 3], "max_tokens": 1}
    status = None
    async with aiohttp.ClientSession(url) as session:
        while server.poll() is None:
            try:
                async with session.post("/v1/completions", json=body) as answer:
                    status = answer.status
            except aiohttp.ClientConnectorError:  # nobody listens, yet or any more
                await asyncio.sleep(0.2)
            except aiohttp.ClientError:
                status = None
    return status


async def test_a_server_without_room_says_so_and_ends(failing: Failing):
    url, server, log = failing
    async with asyncio.timeout(240):
        status = await last_answer(url, server)
    assert server.returncode == 1
    print(f"\nthe last one was told {status}")
    assert status in (None, 502, 503)
    (reason,) = [
        line for line in log.read_text().splitlines() if "did not start" in line
    ]
    assert reason.startswith("medha: medha did not start: ")
    assert "tensor ranks need" in reason
