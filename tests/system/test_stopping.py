"""Stopping and updating a server under load: no token lost in time, an honest end otherwise,
nothing left running."""

import asyncio
import json
import os
import signal
import socket
from contextlib import suppress

import aiohttp
import psutil
import pytest
from serve_process import deploy, serving

CPUS = len(os.sched_getaffinity(0))
MANY = 7_000  # tokens: longer than any drain here
SHIPPED = "smollm2-135m-instruct"


def body(tokens: int, model: str = "random", **more) -> dict:
    return {
        "model": model,
        "prompt": [5, 6, 7],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        **more,
    }


class Stream:
    """A streamed completion that has begun."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer
        self.frames: list[str] = []

    @classmethod
    async def begin(
        cls, session: aiohttp.ClientSession, tokens: int, model: str = "random"
    ) -> "Stream":
        answer = await session.post(
            "/v1/completions", json=body(tokens, model, stream=True)
        )
        assert answer.status == 200, await answer.text()
        stream = cls(answer)
        while not stream.frames:
            stream._take(await answer.content.readline())
        return stream

    async def end(self) -> "Stream":
        async for line in self._answer.content:
            self._take(line)
        return self

    def _take(self, line: bytes) -> None:
        if line.startswith(b"data: "):
            self.frames.append(line.decode().removeprefix("data: ").strip())

    @property
    def text(self) -> str:
        chunks = [json.loads(frame) for frame in self.frames if frame.startswith("{")]
        return "".join(
            chunk["choices"][0]["text"] for chunk in chunks if "choices" in chunk
        )

    @property
    def error(self) -> dict | None:
        assert self.frames[-1] == "[DONE]"
        return json.loads(self.frames[-2]).get("error")


def session_of(url: str) -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=120)
    return aiohttp.ClientSession(url, timeout=timeout, headers={"connection": "close"})


async def health(session: aiohttp.ClientSession) -> aiohttp.ClientResponse:
    async with session.get("/health") as answer:
        await answer.read()
        return answer


async def until_refused(session: aiohttp.ClientSession) -> aiohttp.ClientResponse:
    while (answer := await health(session)).status == 200:
        pass
    return answer


def family(launcher: int) -> list[psutil.Process]:
    """The launcher, and all that it started."""
    process = psutil.Process(launcher)
    return [process, *process.children(recursive=True)]


def assert_gone(processes: list[psutil.Process], url: str) -> None:
    _, alive = psutil.wait_procs(processes, timeout=1)
    assert [
        process for process in alive if process.status() != psutil.STATUS_ZOMBIE
    ] == []
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", int(url.rpartition(":")[2])))


async def exit_status(launcher: int, limit_s: float) -> int:
    return await asyncio.to_thread(psutil.Process(launcher).wait, limit_s)


async def test_sigterm_to_the_process_group_drains(toy):
    url, launcher = toy
    processes = family(launcher)
    assert "haproxy" in {process.name() for process in processes}
    async with session_of(url) as session:
        short = await Stream.begin(session, 50)
        long = await Stream.begin(session, MANY)
        whole = asyncio.create_task(session.post("/v1/completions", json=body(MANY)))
        os.killpg(launcher, signal.SIGTERM)
        unhealthy = await until_refused(session)
        assert unhealthy.status == 503
        assert unhealthy.headers["retry-after"]
        async with session.post("/v1/completions", json=body(1)) as refused:
            assert refused.status == 503
            assert refused.headers["retry-after"]
            assert (await refused.json())["error"][
                "type"
            ] == "service_unavailable_error"
        assert (await short.end()).error is None
        assert len(short.frames) == 51
        assert (await long.end()).error["type"] == "service_unavailable_error"
        async with await whole as answer:
            assert answer.status == 503
            assert answer.headers["retry-after"]
            assert (await answer.json())["error"]["message"]
    assert await exit_status(launcher, limit_s=30) == 0
    assert_gone(processes, url)


async def test_ctrl_c_drains_and_the_second_one_ends_at_once(shipped):
    url, launcher = shipped
    processes = family(launcher)
    async with session_of(url) as session:
        short = await Stream.begin(session, 50, SHIPPED)
        long = await Stream.begin(session, MANY, SHIPPED)
        os.kill(launcher, signal.SIGINT)
        await until_refused(session)
        assert (await short.end()).error is None
        os.kill(launcher, signal.SIGINT)
        with suppress(aiohttp.ClientError):
            await long.end()
        assert "[DONE]" not in long.frames
    assert await exit_status(launcher, limit_s=10) == 130
    assert_gone(processes, url)


DEPLOYED = {
    "model_loading_config": {
        "model_source": "random",
        "model_id": "random",
        "dtype": "float32",
        "max_model_len_tokens": 16_384,
    },
    "kv_cache": {"budget_bytes": 2**25, "page_tokens": 16},
    "predictor": {"calibrate": False},
}


def controllers(launcher: int) -> set[int]:
    found = set()
    for process in family(launcher):
        with suppress(psutil.Error):  # it has ended meanwhile
            command = process.cmdline()
            if command and command[0].startswith("ray::SchedulerActor"):
                found.add(process.pid)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "share", [0.25, 0.5], ids=["room for both grids", "room for one grid"]
)
async def test_streams_finish_across_a_deploy(tmp_path, share):
    actors = {"num_cpus": CPUS * share}
    with serving(tmp_path, **DEPLOYED, actors=actors) as (url, launcher):
        (old,) = controllers(launcher)
        async with session_of(url) as session:
            alone = await (await Stream.begin(session, 400)).end()
            streams = [await Stream.begin(session, 400) for _ in range(4)]
            changed = {"scheduler": {"policy": "edf"}}
            log = tmp_path / "serve.log"
            args = {**DEPLOYED, "actors": actors, **changed}
            await asyncio.to_thread(deploy, tmp_path / "changed.yaml", url, log, **args)
            for stream in streams:
                await stream.end()
                assert stream.error is None
                assert stream.text == alone.text
            while old in controllers(launcher) or (await health(session)).status != 200:
                pass
            assert (await (await Stream.begin(session, 400)).end()).text == alone.text
            assert len(controllers(launcher)) == 1
